"""Training k-means over a store, and the units that its centres give; against scikit-learn on plain arrays."""

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Done, feature_store, run
from encodeonce.store import FeatureStore
from encodeonce.store import kmeans as kmeans_module
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.feature_writer import FeatureWriter
from encodeonce.store.identity import fingerprint
from encodeonce.store.incoming import NewUtterance
from encodeonce.store.kmeans import KMeans, read_kmeans
from encodeonce.store.layout import Output
from encodeonce.train.kmeans.cli import main
from encodeonce.train.kmeans.first import MOST_BY_PLUS_PLUS, first_centres
from encodeonce.train.kmeans.frames import Frames
from encodeonce.train.kmeans.minibatch import ScikitMiniBatch
from encodeonce.train.kmeans.on_device import TorchMiniBatch
from encodeonce.train.kmeans.run import KMeansOptions, finish, train, unseen
from sklearn.cluster import KMeans as PlainKMeans
from sklearn.metrics import normalized_mutual_info_score
from small_store import write_store

CLUSTERED = Output("layer-09", 16, "float32", "hidden_states[9]").to_json()
SOURCE = {"encoder": "toy", "source": "toy", "fingerprint": "f", "identity": {"weights": "1"}, "output": CLUSTERED}


def blobs(clusters: int = 8, frames: int = 4000, width: int = 16, seed: int = 0) -> np.ndarray:
    """Frames around some centres, float32."""
    generator = np.random.default_rng(seed)
    middles = generator.standard_normal((clusters, width)) * 4
    return (middles[generator.integers(0, clusters, frames)] + generator.standard_normal((frames, width))).astype("f4")


def store_of(
    folder: Path, utterances: dict[str, np.ndarray], dtype: str = "float32", split: str = "dev"
) -> FeatureStore:
    """A store of one output with the given features."""
    width = next(iter(utterances.values())).shape[1]
    outputs = [Output("layer-09", width, dtype, "hidden_states[9]")]
    writer = FeatureWriter(folder, "toy", split, outputs, {"weights": "1"}, 16_000, 320, shard_frames=1024)
    new = [NewUtterance(name, len(values), samples=len(values) * 320) for name, values in utterances.items()]
    assert not writer.write(new, lambda name: {"layer-09": utterances[name]}).failed
    return FeatureStore(writer.path)


def blob_store(folder: Path, **options: Any) -> tuple[FeatureStore, np.ndarray]:
    """A store of 40 utterances of blobs, and their frames."""
    frames = blobs()
    pieces = np.split(frames, np.arange(100, 4000, 100))
    return store_of(folder, {f"utt-{i:02d}": piece for i, piece in enumerate(pieces)}, **options), frames


def kmeans_of(centres: np.ndarray, **fields: Any) -> KMeans:
    """A k-means with these centres, each of one frame."""
    one = KMeans(centres, np.ones(len(centres), np.int64), "hidden_states[9]", SOURCE, {})
    return replace(one, **fields)


def inertia(frames: np.ndarray, centres: np.ndarray) -> float:
    """Mean squared distance from the nearest centre, in float64, all distances at once."""
    apart = frames[:, None].astype(np.float64) - centres[None]
    return float(np.square(apart).sum(axis=2).min(axis=1).mean())


def command(*arguments: object) -> Done:
    """train-kmeans."""
    return run(main, [str(argument) for argument in arguments])


def refused(*arguments: object) -> str:
    """What train-kmeans says of a request that is wrong."""
    done = command(*arguments)
    assert done.status == 2
    assert "Traceback" not in done.err
    return done.err


# The folder and its units


def test_a_kmeans_is_read_as_it_was_written(tmp_path):
    written = kmeans_of(blobs(frames=20), counts=np.arange(1, 21), training={"inertia": 1.5})
    written.write(tmp_path / "km")
    found = read_kmeans(tmp_path / "km")
    np.testing.assert_array_equal(found.centres, written.centres)
    np.testing.assert_array_equal(found.counts, written.counts)
    assert (found.what, found.source, found.training) == (written.what, SOURCE, {"inertia": 1.5})
    assert found.fingerprint == written.fingerprint
    np.testing.assert_array_equal(found.codebooks.vectors(np.array([[3]], np.uint16)), written.centres[3:4])


def test_the_fingerprint_is_that_of_centres_layer_and_encoder_alone():
    centres = blobs(frames=20)
    first = kmeans_of(centres).fingerprint
    assert kmeans_of(centres, training={"seconds": 3}, source={**SOURCE, "source": "elsewhere"}).fingerprint == first
    assert kmeans_of(centres + 1).fingerprint != first
    assert kmeans_of(centres, what="hidden_states[6]").fingerprint != first
    assert kmeans_of(centres, source={**SOURCE, "identity": {"weights": "2"}}).fingerprint != first


@pytest.mark.parametrize("block_bytes", [1, 1000, 1 << 26])
def test_units_are_the_nearest_centres_whatever_the_block(block_bytes, monkeypatch):
    monkeypatch.setattr(kmeans_module, "BLOCK_BYTES", block_bytes)
    frames, centres = blobs(seed=1)[:300], blobs(seed=1)[300:350]
    units = kmeans_of(centres).assign(frames)
    assert (units.shape, units.dtype) == ((300, 1), np.uint16)
    expected = np.square(frames[:, None].astype(np.float64) - centres[None]).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(units[:, 0], expected)


def test_the_first_of_equal_centres_wins_and_the_last_of_65536_is_a_unit():
    centres = np.random.default_rng(0).standard_normal((1 << 16, 16)).astype(np.float32)
    assert kmeans_of(centres).assign(centres[[0, 7, -1]])[:, 0].tolist() == [0, 7, 65535]
    twice = np.array([[5], [1], [1], [5]], np.float32)
    assert kmeans_of(twice).assign(twice)[:, 0].tolist() == [0, 1, 1, 0]
    assert kmeans_of(twice).assign(np.empty((0, 1), np.float16)).shape == (0, 1)


def test_what_is_no_features_of_the_kmeans_is_refused():
    found = kmeans_of(np.zeros((3, 768), np.float32))
    with pytest.raises(StoreError, match=r"768 dimensions \(hidden_states\[9\] of toy\), the features have 1024"):
        found.assign(np.zeros((2, 1024), np.float32))
    with pytest.raises(StoreError, match="codes cannot be made units"):
        found.assign(np.zeros((2, 768), np.uint16))
    values = np.zeros((9, 768), np.float16)
    values[4, 3] = np.nan
    with pytest.raises(StoreError, match="frame 4 holds NaN"):
        found.assign(values)


def test_centres_that_cannot_be_are_refused():
    with pytest.raises(StoreError, match="1 to 65,536"):
        kmeans_of(np.zeros((65537, 1), np.float32))
    with pytest.raises(StoreError, match="centre 1 holds NaN"):
        kmeans_of(np.array([[0], [np.nan]], np.float32))
    with pytest.raises(StoreError, match=r"1 of 3 clusters are empty, e.g. 2.*fewer --clusters"):
        kmeans_of(np.zeros((3, 2), np.float32), counts=np.array([1, 4, 0]))


def test_a_folder_that_is_none_or_damaged_is_an_error_that_says_so(tmp_path):
    with pytest.raises(StoreError, match=r"holds no k-means: no kmeans.json.*train-kmeans makes one"):
        read_kmeans(tmp_path)
    kmeans_of(blobs(frames=9)).write(tmp_path)
    said = json.loads((tmp_path / "kmeans.json").read_text())
    for change, error, message in (
        ({"counts": [1] * 8 + [0]}, StoreError, "1 of 9 clusters are empty"),
        ({"what": "hidden_states[1]"}, DamagedError, "its centres and source give"),
        ({"source": None}, DamagedError, "lacks a field"),
        ({"source": {**SOURCE, "output": {}}}, DamagedError, "lacks a field"),
        ({"format": "a poem"}, StoreError, "is no k-means, but a poem"),
    ):
        (tmp_path / "kmeans.json").write_text(json.dumps(said | change))
        with pytest.raises(error, match=message):
            read_kmeans(tmp_path)
    (tmp_path / "kmeans.json").write_text(json.dumps(said))
    kmeans_of(blobs(frames=9, seed=5)).codebooks.write(tmp_path / "centres.safetensors")
    with pytest.raises(DamagedError, match="its centres and source give"):
        read_kmeans(tmp_path)


# What is learnt


def test_mini_batches_hold_every_frame_of_an_epoch_once_and_mixed(tmp_path):
    store, frames = blob_store(tmp_path)
    batches = list(Frames(store, seed=3).batches(700, epochs=1))
    assert [len(batch) for batch in batches] == [700] * 5 + [500]
    found = np.concatenate(batches)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], frames[np.lexsort(frames.T)])
    place = {row.tobytes(): number // 100 for number, row in enumerate(frames)}
    assert len({place[row.tobytes()] for row in batches[0]}) == 40  # of every utterance
    again, other = (np.concatenate(list(Frames(store, seed=seed).batches(700, epochs=1))) for seed in (3, 4))
    np.testing.assert_array_equal(found, again)
    assert not np.array_equal(found, other)


def test_mini_batches_go_on_over_epochs_through_a_small_pool(tmp_path, monkeypatch):
    monkeypatch.setattr("encodeonce.train.kmeans.frames.POOL_FRAMES", 500)
    store, _ = blob_store(tmp_path)
    found = np.concatenate(list(Frames(store).batches(300, epochs=3)))
    rows, counts = np.unique(found, axis=0, return_counts=True)
    assert (len(rows), set(counts.tolist())) == (4000, {3})
    assert all(len(batch) == 300 for batch in islice(Frames(store).batches(300), 50))


def test_int8_is_restored_and_a_limit_takes_whole_utterances(tmp_path):
    store, frames = blob_store(tmp_path, dtype="int8")
    limited = Frames(store, limit=1050)
    assert (limited.count, limited.utterances) == (1000, 10)
    found = np.concatenate(list(limited.batches(1000, epochs=1)))
    assert np.abs(found[:100, None] - frames[None]).max(axis=2).min(axis=1).max() < 0.1


def learnt(store: FeatureStore, model: Any, steps: int = 100) -> np.ndarray:
    """The centres after some mini-batches."""
    for batch in islice(Frames(store).batches(500), steps):
        model.step(batch)
    return model.centres


def test_torch_and_scikit_learn_agree_with_full_kmeans_on_blobs(tmp_path):
    store, frames = blob_store(tmp_path)
    first = first_centres(frames, 20, 0)
    full = PlainKMeans(20, init=first, n_init=1).fit(frames).inertia_ / len(frames)
    scikit, torch = learnt(store, ScikitMiniBatch(first, 0)), learnt(store, TorchMiniBatch(first, 0, "cpu"))
    np.testing.assert_allclose(torch, scikit, atol=1e-3)
    assert inertia(frames, scikit) < 1.02 * full
    assert inertia(frames, torch) < 1.02 * full


@pytest.mark.parametrize("kind", [ScikitMiniBatch, lambda centres, seed: TorchMiniBatch(centres, seed, "cpu")])
def test_a_centre_that_wins_nothing_is_put_onto_a_frame(kind):
    frames = blobs()
    model = kind(np.concatenate([frames[:5], np.full((1, 16), 1e4, np.float32)]), 0)
    model.step(frames)
    assert np.square(frames - model.centres[5]).sum(axis=1).min() == 0


@pytest.mark.parametrize("kind", [ScikitMiniBatch, lambda centres, seed: TorchMiniBatch(centres, seed, "cpu")])
def test_empty_clusters_are_put_onto_the_farthest_frames_and_refined(kind, tmp_path):
    frames = blobs()
    frames[1234] = 60  # so far that a cluster of its own is worth it
    store = store_of(tmp_path, {"one": frames})
    model = kind(frames[:5], 0)
    model.step(frames)
    model.move(np.array([4]), np.full((1, 16), 1e4, np.float32))
    usage, moved = finish(model, Frames(store), 1000, KMeansOptions(5, steps=4), unseen)
    assert (moved, usage.empty.size, usage.counts.sum()) == (1, 0, 4000)
    assert usage.inertia == pytest.approx(inertia(frames, model.centres), rel=1e-4)
    np.testing.assert_allclose(model.centres[4], 60, atol=0.5)


def test_training_gives_the_same_kmeans_for_a_seed_and_counts_its_units(tmp_path):
    store, frames = blob_store(tmp_path)
    options = KMeansOptions(12, batch_frames=800, steps=30, seed=7)
    found, again = train(store, options=options), train(store, options=options)
    assert found.fingerprint == again.fingerprint
    assert train(store, options=KMeansOptions(12, batch_frames=800, steps=30, seed=8)).fingerprint != found.fingerprint
    np.testing.assert_array_equal(found.counts, np.bincount(found.assign(frames)[:, 0], minlength=12))
    assert found.training["inertia"] == pytest.approx(inertia(frames, found.centres), rel=1e-4)
    share = found.counts / found.counts.sum()
    assert found.training["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
    assert fingerprint(found.source["identity"]) == found.source["fingerprint"] == store.fingerprint


def test_many_clusters_begin_with_different_frames_by_chance(tmp_path):
    frames = blobs(frames=6000)
    frames[3000:3500] = frames[0]
    found = first_centres(frames, MOST_BY_PLUS_PLUS + 1, 0)
    assert len(np.unique(found, axis=0)) == MOST_BY_PLUS_PLUS + 1
    assert {row.tobytes() for row in found} <= {row.tobytes() for row in frames}


# The command


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Iterator[Path]:
    """A small store's folder with an output of every dtype."""
    with write_store(tmp_path_factory.mktemp("small")) as store:
        yield Path(str(store.path))


def test_the_command_writes_a_kmeans_finds_it_again_and_replaces_it_when_told(small, tmp_path):
    ours = [small, "--clusters", 10, "--steps", 20, "--to", tmp_path / "km", "--json"]
    done = command(*ours)
    assert done.status == 0
    assert done.out.startswith("Trained 10 clusters of hidden_states[9] of toy on 530 frames in ")
    assert f"feature-store derive units {small} --kmeans {tmp_path / 'km'}" in done.out
    said, found = done.json["kmeans"], read_kmeans(tmp_path / "km")
    assert (said["fingerprint"], said["stood"], said["width"]) == (found.fingerprint, False, 32)
    assert command(*ours).json["kmeans"]["stood"] is True
    assert "holds another k-means (10 clusters of hidden_states[9] of toy), trained with other seed" in refused(
        *ours, "--seed", 1
    )
    assert read_kmeans(tmp_path / "km").fingerprint == found.fingerprint
    assert command(*ours, "--seed", 1, "--replace").status == 0
    assert read_kmeans(tmp_path / "km").fingerprint != found.fingerprint


def test_several_splits_are_learnt_from_together(tmp_path):
    names = {f"b-{i}": 50 for i in range(3)}
    write_store(tmp_path / "store").close()
    write_store(tmp_path / "store", "test", names).close()
    store = tmp_path / "store"
    done = command(
        store, "--split", "dev", "--split", "test", "--clusters", 4, "--steps", 5, "--to", tmp_path / "km", "--json"
    )
    assert done.json["kmeans"]["frames"] == 530 + 150
    (way_on,) = (line for line in done.out.splitlines() if line.startswith("Make units with: "))
    _, *arguments = shlex.split(way_on.partition(": ")[2])
    assert feature_store(*arguments, "--name", "km4").status == 0
    assert all("km4" in FeatureStore(store, split=split).outputs for split in ("dev", "test"))
    assert "several splits" in refused(store, "--to", tmp_path / "other")


def test_bad_requests_are_refused_in_a_line(small, tmp_path):
    to = ["--to", tmp_path / "km"]
    assert "dev holds codes (codes of 4 quantizers)" in refused(small, "--output", "codes", *to)
    assert "dev holds codes (k-means)" in refused(small, "--output", "units", *to)
    assert "no output 'layer-7'" in refused(small, "--output", "layer-7", *to)
    assert "531 clusters of 530 frames" in refused(small, "--clusters", 531, *to)
    assert "65,537 clusters: take 1 to 65,536" in refused(small, "--clusters", 65537, *to)
    assert "at most 3 frames" in refused(small, "--clusters", 5, "--frames", 3, *to)
    assert "take auto, cpu" in refused(small, "--clusters", 5, "--device", "abacus", *to)
    assert not (tmp_path / "km").exists()


def test_more_clusters_than_different_frames_is_refused(tmp_path):
    store = store_of(tmp_path / "store", {"one": np.repeat(blobs(frames=30), 10, axis=0)})
    said = refused(store.path, "--clusters", 31, "--to", tmp_path / "km")
    assert "31 clusters of 300 frames, of which 30 are different: take fewer --clusters" in said


def test_clusters_that_stay_empty_are_an_error(tmp_path, monkeypatch):
    store = store_of(tmp_path, {"one": blobs(frames=300)})
    monkeypatch.setattr("encodeonce.train.kmeans.usage.FARTHEST_FRAMES", 1)
    monkeypatch.setattr(
        ScikitMiniBatch, "step", lambda model, frames: model._model.partial_fit(frames[:10].repeat(30, 0))
    )
    with pytest.raises(StoreError, match=r"of 200 clusters stay empty.*fewer --clusters"):
        train(store, options=KMeansOptions(200, steps=2))


@pytest.mark.shared
def test_units_of_golden_hubert_features_go_with_the_golden_km500_units(shared, tmp_path):
    frames = np.load(shared / "goldens" / "sample.base.L9.npy")
    golden = np.array((shared / "goldens" / "sample.base.L9.km500.km").read_text().split(), int)
    assert frames.shape == (len(golden), 768) == (596, 768)
    found = train(store_of(tmp_path, {"sample": frames}), options=KMeansOptions(50, steps=100))
    units = found.assign(frames)[:, 0]
    full = PlainKMeans(50, n_init=1, random_state=0).fit(frames)
    assert found.training["inertia"] < 1.02 * full.inertia_ / len(frames)
    ours, theirs, by_chance = (
        normalized_mutual_info_score(golden, some)
        for some in (units, full.labels_, np.random.default_rng(0).permutation(units))
    )
    assert by_chance + 0.1 < theirs - 0.02 < ours
