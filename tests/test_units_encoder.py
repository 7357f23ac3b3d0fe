"""units:FOLDER: the units made while extracting are those that k-means gives the base encoder's features."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, Checkpoints, relative, speechlike
from commands import Done, extract, split_folder, write_corpus
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import Encoder, EncoderError, LoadedEncoder
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.extract.encoders.units import LoadedUnits, Units, nearest, word_for
from encodeonce.store import FeatureStore
from encodeonce.store.codebooks import Codebooks, Quantizer, read_codebooks
from encodeonce.store.kmeans import KMeans
from encodeonce.store.layout import read_feature_set
from hypothesis import given, settings
from hypothesis import strategies as st
from speechtokenizer_checkpoint import save_speechtokenizer

CLUSTERS, LAYER = 40, 2
SECONDS = [0.8, 1.7, 0.45, 2.3]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_corpus(root / "some", SECONDS)
    return root


@pytest.fixture(scope="module")
def features(checkpoints: Checkpoints, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split of the base encoder's features, from which the k-means is made."""
    store = tmp_path_factory.mktemp("features")
    options = ("--layers", f"{LAYER},mean:1-{LAYER}", "--dtype", "float32")
    done = extract(data, "some", store, *options, encoder=str(checkpoints.folder("hubert-large")))
    assert done.status == 0, done.err
    return split_folder(store, "some")


def trained(features: Path, folder: Path, what: str = f"hidden_states[{LAYER}]", **changes: Any) -> KMeans:
    """A k-means folder whose centres are frames of the stored features."""
    feature_set = read_feature_set(features.parent)
    (output,) = (output for output in feature_set.outputs.values() if output.what == what)
    store = FeatureStore(features, output=output.name)
    frames = np.concatenate([store[name].features for name in store.ids])
    chosen = np.random.default_rng(0).choice(len(frames), CLUSTERS, replace=False)
    source = {
        "encoder": feature_set.encoder,
        "source": feature_set.provenance["source"],
        "fingerprint": feature_set.fingerprint,
        "identity": feature_set.identity,
        "output": output.to_json(),
    }
    kmeans = KMeans(frames[chosen], np.ones(CLUSTERS, np.int64), what, source, {})
    kmeans = replace(kmeans, **changes)
    kmeans.write(folder)
    return kmeans


def extract_units(data: Path, store: Path, folder: Path, base: Path, *options: str) -> Done:
    """extract-features --encoder units:FOLDER."""
    return extract(data, "some", store, "--base-encoder", str(base), *options, encoder=f"units:{folder}")


@pytest.mark.parametrize("what", [f"hidden_states[{LAYER}]", f"mean(hidden_states[1-{LAYER}])"])
@pytest.mark.parametrize("batch_seconds", ["0", "30"])
def test_units_are_those_of_the_stored_features(
    what: str, batch_seconds: str, features: Path, checkpoints: Checkpoints, data: Path, tmp_path: Path
) -> None:
    kmeans = trained(features, tmp_path / "km", what)
    base = checkpoints.folder("hubert-large")
    done = extract_units(data, tmp_path / "store", tmp_path / "km", base, "--batch-seconds", batch_seconds)
    assert done.counts() == (len(SECONDS), 0, 0, 0), done.err
    path = split_folder(tmp_path / "store", "some")
    units = FeatureStore(path)
    assert list(units.outputs) == ["units"]
    assert read_feature_set(path.parent).outputs["units"].codebook_sizes == (CLUSTERS,)
    np.testing.assert_array_equal(
        read_codebooks(path.parent / "codebooks" / "units.safetensors").quantizers[0].codebook, kmeans.centres
    )
    output = f"mean-01-{LAYER:02d}-float32" if what.startswith("mean") else f"layer-{LAYER:02d}-float32"
    stored = FeatureStore(features, output=output)
    seen: set[int] = set()
    for name in units.ids:
        made = np.asarray(units[name].features)
        assert made.dtype == np.uint16
        assert_nearest(made, np.asarray(stored[name].features), kmeans)
        seen.update(made.ravel().tolist())
    assert len(seen) > CLUSTERS // 2, "units that hardly vary would prove nothing"


def test_units_of_a_codecs_latents(data: Path, tmp_path: Path) -> None:
    base = save_speechtokenizer(tmp_path / "codec")
    options = ("--outputs", "latents:1-7", "--dtype", "float32")
    done = extract(data, "some", tmp_path / "features", *options, encoder=str(base))
    assert done.status == 0, done.err
    features = split_folder(tmp_path / "features", "some")
    kmeans = trained(features, tmp_path / "km", "latents[1-7]")
    encoder = find_encoder(f"units:{tmp_path / 'km'}", FileCache(), str(base))
    assert (encoder.whole, encoder.one_thread) == (True, True)
    done = extract_units(data, tmp_path / "store", tmp_path / "km", base)
    assert done.status == 0, done.err
    units, stored = FeatureStore(split_folder(tmp_path / "store", "some")), FeatureStore(features)
    for name in units.ids:
        assert_nearest(np.asarray(units[name].features), np.asarray(stored[name].features), kmeans)


def assert_nearest(made: np.ndarray, features: np.ndarray, kmeans: KMeans) -> None:
    """The units `[T, 1]` are k-means' own wherever one centre is clearly nearer than the next."""
    expected = kmeans.assign(features)
    assert made.shape == expected.shape
    distances = ((features[:, None].astype(np.float64) - kmeans.centres[None]) ** 2).sum(-1)
    best, second = np.partition(distances, 1, axis=1)[:, :2].T
    clear = second - best > 1e-4
    np.testing.assert_array_equal(made[clear], expected[clear])
    assert (made == expected).mean() >= 0.999


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(1, 300),
    clusters=st.integers(1, 200),
    width=st.integers(1, 12),
    block=st.integers(1, 1 << 14),
    seed=st.integers(0, 1000),
)
def test_blocks_do_not_change_the_nearest_centre(frames: int, clusters: int, width: int, block: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((frames, width)).astype(np.float32)
    centres = generator.standard_normal((clusters, width)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("encodeonce.extract.encoders.units.BLOCK_BYTES", block)
        found = nearest(torch.from_numpy(values), torch.from_numpy(centres)).numpy()
    distances = np.linalg.norm(values[:, None] - centres[None], axis=2)
    assert (distances[np.arange(frames), found] - distances.min(1) <= 1e-4).all()


def test_the_first_of_several_equal_centres() -> None:
    centres = torch.tensor([[5.0, 5.0], [1.0, 0.0], [1.0, 0.0]])
    assert nearest(torch.tensor([[1.0, 0.1], [4.0, 4.0]]), centres).tolist() == [1, 0]


def test_what_is_not_finite_has_no_unit() -> None:
    class Broken(LoadedEncoder):
        def forward(self, audio: torch.Tensor, lengths: Any) -> dict[str, torch.Tensor]:
            values = torch.zeros(1, 3, 2)
            values[0, 1, 0] = torch.nan
            return {"hidden_states[1]": values}

    books = Codebooks((Quantizer(np.eye(2, dtype=np.float32)),))
    made = LoadedUnits(Broken(), "hidden_states[1]", "units", books, "cpu").forward(torch.zeros(1, 9), [9])["units"]
    assert (made.dtype, made.flatten().tolist()) == (torch.int64, [0, -1, 0])


def test_the_base_encoder_says_everything_but_the_units(
    features: Path, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    kmeans = trained(features, tmp_path / "km")
    base = find_encoder(str(checkpoints.folder("hubert-large")), FileCache())
    units = find_encoder(f"units:{tmp_path / 'km'}", FileCache(), str(checkpoints.folder("hubert-large")))
    assert isinstance(units, Units)
    assert units.name == f"hubert-large-km{CLUSTERS}"
    for field in Encoder.__annotations__.keys() - {"name", "source", "default_outputs"}:
        assert getattr(units, field) == getattr(base, field), field
    samples = speechlike(9000, 1)
    assert units.frames(9000) == base.frames(9000)
    assert relative(units.prepare(samples), base.prepare(samples)) == 0
    ours, theirs = units.identity(), base.identity()
    assert ours["encoder"]["base"] == theirs["encoder"]
    assert ours["encoder"]["kmeans"] == kmeans.fingerprint
    assert ours["weights"] == theirs["weights"]


def test_another_kmeans_is_another_feature_set(
    features: Path, checkpoints: Checkpoints, data: Path, tmp_path: Path
) -> None:
    first = trained(features, tmp_path / "km")
    trained(features, tmp_path / "other", centres=first.centres + np.float32(0.1))
    for folder in ("km", "other"):
        done = extract_units(data, tmp_path / "store", tmp_path / folder, checkpoints.folder("hubert-large"))
        assert done.status == 0, done.err
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_words_for_outputs() -> None:
    asked = {
        "hidden_states[9]": "9",
        "mean(hidden_states[18-24])": "mean:18-24",
        "latents[0-7]": "latents:0-7",
        "log-mel energies": "last",
    }
    assert {what: word_for(what) for what in asked} == asked


def error(features: Path, tmp_path: Path, base: str | None, **changes: Any) -> str:
    """What find_encoder says of a k-means with these changes."""
    trained(features, tmp_path / "km", **changes)
    with pytest.raises(EncoderError) as raised:
        find_encoder(f"units:{tmp_path / 'km'}", FileCache(), base)
    return str(raised.value)


def test_another_encoder_than_was_clustered(features: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    said = error(features, tmp_path, str(checkpoints.folder("hubert-base")))
    assert "another encoder than hubert-base" in said
    assert "encoder.config.feat_extract_norm" in said
    assert "weights" in said


def test_the_same_architecture_with_other_weights(features: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    FAMILIES["hubert-large"].model(seed=7).save_pretrained(tmp_path / "again")
    said = error(features, tmp_path, str(tmp_path / "again"))
    assert "weights: " in said
    assert "encoder.config" not in said


def test_a_kmeans_of_another_width(features: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    centres = np.eye(CLUSTERS, 24, dtype=np.float32)
    said = error(features, tmp_path, str(checkpoints.folder("hubert-large")), centres=centres)
    assert "24 dimensions" in said
    assert "has 32" in said


@pytest.mark.parametrize("what", ["pca(hidden_states[2])", "hidden_states[11]"])
def test_what_is_not_had_while_extracting(what: str, features: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    kmeans = trained(features, tmp_path / "km")
    replace(kmeans, what=what).write(tmp_path / "km")
    with pytest.raises(EncoderError, match="feature-store derive units"):
        find_encoder(f"units:{tmp_path / 'km'}", FileCache(), str(checkpoints.folder("hubert-large")))


def test_a_kmeans_of_a_feature_set_that_was_derived(features: Path, checkpoints: Checkpoints, tmp_path: Path) -> None:
    source = trained(features, tmp_path / "km").source | {
        "identity": {"encoder": "hubert-large-stack4", "identity": {"parent": "0" * 64}}
    }
    said = error(features, tmp_path, str(checkpoints.folder("hubert-large")), source=source)
    assert "feature-store derive units" in said


def test_the_encoder_it_was_trained_on_is_not_here(features: Path, tmp_path: Path) -> None:
    said = error(features, tmp_path, None)
    assert "needs the encoder that it was trained on, hubert-large" in said
    assert "--base-encoder" in said


def test_wrong_requests(features: Path, checkpoints: Checkpoints, data: Path, tmp_path: Path) -> None:
    base = checkpoints.folder("hubert-large")
    trained(features, tmp_path / "km")
    layers = extract_units(data, tmp_path / "store", tmp_path / "km", base, "--layers", "3")
    assert (layers.status, "one output, units" in layers.err) == (2, True)
    nothing = extract_units(data, tmp_path / "store", tmp_path / "nothing", base)
    assert (nothing.status, "holds no k-means" in nothing.err) == (2, True)
    alone = extract(data, "some", tmp_path / "store", "--base-encoder", "fbank", encoder=str(base))
    assert (alone.status, "belongs to --encoder units:FOLDER" in alone.err) == (2, True)
