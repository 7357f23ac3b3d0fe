"""Derived outputs: the numbers of plain numpy and scikit-learn, the guarantees of extraction."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from commands import contents, extract, feature_store, split_folder, write_corpus
from encodeonce.store import FeatureStore
from encodeonce.store.codebooks import Codebooks, Quantizer
from encodeonce.store.derive.frames import LONGEST_RUN, runs
from encodeonce.store.derive.operations import Cast, Pca
from encodeonce.store.derive.request import request
from encodeonce.store.derive.shards import derive_split
from encodeonce.store.feature_writer import FeatureWriter
from encodeonce.store.incoming import NewUtterance
from encodeonce.store.kmeans import KMeans
from encodeonce.store.layout import Output, read_feature_set
from encodeonce.store.objects import ObjectPath, store_path
from encodeonce.store.quantize import keep
from encodeonce.store.writer import SplitWriter
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances_argmin
from small_store import CONSTANT, NAMES, OUTPUTS, features, with_another_split, write_store


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Nine utterances in several shards."""
    return write_store(tmp_path / "features")


def derive(*arguments: Any) -> dict[str, Any]:
    """feature-store derive, and the report of its one split."""
    done = feature_store("derive", *map(str, arguments), "--json")
    assert done.status == 0, done.err
    (report,) = done.json["derived"]
    return report


def refused(*arguments: Any) -> str:
    """What feature-store derive says of a request that is wrong: one line."""
    done = feature_store("derive", *map(str, arguments))
    assert done.status == 2
    assert "Traceback" not in done.err
    return done.err.strip().splitlines()[-1]


def values(path: Any, output: str) -> dict[str, np.ndarray]:
    """The frames of each utterance, by id, read with plain zarr; int8 restored."""
    table = FeatureStore(path).table
    group = zarr.open_group(str(Path(str(path)) / "features.zarr"), mode="r")
    array = group[output]
    assert isinstance(array, zarr.Array)
    found = {}
    for row in table.select(["id", "row", "frames"]).to_pylist():
        frames: Any = array[row["row"] : row["row"] + row["frames"]]
        if array.dtype == np.int8:
            scales = group[f"{output}-affine"]
            assert isinstance(scales, zarr.Array)
            scale, offset = np.asarray(scales[row["row"] // array.chunks[0]])
            frames = frames * scale + offset
        found[row["id"]] = np.asarray(frames)
    return found


def together(found: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([found[name] for name in sorted(found)]).astype(np.float64)


def set_of(store: FeatureStore) -> Path:
    return Path(str(store.path)).parent


def kmeans_of(store: FeatureStore, clusters: int, folder: Path, output: str = "layer-9", **changed: Any) -> Path:
    """A k-means folder whose centres are frames of an output."""
    feature_set = read_feature_set(set_of(store))
    frames = together(values(store.path, output))
    frames = frames[:: min(len(store) * 5, len(frames) // clusters)][:clusters].astype(np.float32)
    source = {
        "encoder": feature_set.encoder,
        "source": "toy",
        "fingerprint": feature_set.fingerprint,
        "identity": feature_set.identity,
        "output": feature_set.outputs[output].to_json(),
    }
    fields: dict[str, Any] = {"centres": frames, "what": "hidden_states[9]", "source": source, **changed}
    KMeans(counts=np.ones(len(fields["centres"]), np.int64), training={}, **fields).write(folder)
    return folder


def test_int8_is_the_stored_form_of_the_source_and_the_parent_stays_as_it_is(store: FeatureStore):
    before = contents(Path(str(store.path)) / "features.zarr" / "layer-9", times=True)
    report = derive("cast", store.path, "--dtype", "int8", "--output", "layer-9-float32", "--name", "small")
    assert (report["utterances"], report["derived"]) == (len(NAMES), len(NAMES))
    found, source = values(store.path, "small"), values(store.path, "layer-9-float32")
    for name, frames in source.items():
        codes, affine, _ = keep(frames, OUTPUTS[2])
        assert affine is not None
        assert np.array_equal(found[name], codes * affine[0] + affine[1])
    assert contents(Path(str(store.path)) / "features.zarr" / "layer-9", times=True) == before
    assert feature_store("verify", "--read-data", store.path).status == 0
    spec = FeatureStore(store.path).spec("small")
    assert (spec.what, spec.derived_from, spec.derivation) == (
        "hidden_states[9]",
        "layer-9-float32",
        {"operation": "cast"},
    )


def test_a_second_call_finds_nothing_to_do_and_writes_nothing(store: FeatureStore):
    derive("pca", store.path, "--dimensions", "5")
    before = contents(set_of(store), times=True)
    assert derive("pca", store.path, "--dimensions", "5")["derived"] == 0
    assert contents(set_of(store), times=True) == before


def test_mean_normalise_and_pca_are_those_of_numpy_and_scikit_learn(store: FeatureStore):
    derive(
        "mean", store.path, "--output", "layer-9", "--output", "layer-9-float32", "--dtype", "float32", "--name", "m"
    )
    halves, singles = together(values(store.path, "layer-9")), together(values(store.path, "layer-9-float32"))
    assert np.allclose(together(values(store.path, "m")), (halves + singles) / 2, atol=1e-5)

    derive("normalise", store.path, "--dtype", "float32")
    derive("pca", store.path, "--dimensions", "4", "--dtype", "float32", "--whiten")
    frames, std = halves, halves.std(axis=0)
    std[CONSTANT] = 1
    wanted = (frames - frames.mean(axis=0)) / std
    found = together(values(store.path, "layer-9-normalised-float32"))
    assert np.allclose(found, wanted, atol=1e-4)
    assert not found[:, CONSTANT].any()

    projected = PCA(4, whiten=True, svd_solver="full").fit(frames).transform(frames)
    ours = together(values(store.path, "layer-9-pca4-whitened-float32"))
    agreement = np.corrcoef(ours.T, projected.T)[:4, 4:].diagonal()
    assert np.allclose(np.abs(agreement), 1, atol=1e-5)
    assert np.allclose(ours.var(axis=0), 1, atol=1e-4)


def test_units_are_the_nearest_centres_and_their_latents_the_centres(store: FeatureStore, tmp_path: Path):
    folder = kmeans_of(store, 7, tmp_path / "km")
    derive("units", store.path, "--kmeans", folder, "--name", "clusters")
    derive("latents", store.path, "--output", "clusters", "--dtype", "float32")
    frames = together(values(store.path, "layer-9"))
    centres = frames[:: len(store) * 5][:7].astype(np.float32)
    units = together(values(store.path, "clusters"))[:, 0].astype(int)
    assert np.array_equal(units, pairwise_distances_argmin(frames, centres))
    assert np.array_equal(together(values(store.path, "clusters-latents-float32")), centres[units])
    assert FeatureStore(store.path).spec("clusters").codebook_sizes == (7,)


def test_latents_of_codes_are_the_sum_of_the_chosen_codebooks(store: FeatureStore):
    tables = np.random.default_rng(0).standard_normal((4, 40, 6)).astype(np.float32)
    path = read_feature_set(set_of(store)).codebooks("codes")
    Codebooks(tuple(map(Quantizer, tables))).write(path)
    derive("latents", store.path, "--output", "codes", "--quantizers", "1-2", "--dtype", "float32", "--name", "some")
    codes = together(values(store.path, "codes")).astype(int)
    assert np.array_equal(together(values(store.path, "some")), tables[1][codes[:, 1]] + tables[2][codes[:, 2]])


def test_stack_stride_and_dedup_are_feature_sets_of_their_own(store: FeatureStore):
    stacked = derive("stack", store.path, "--frames", "4")
    strided = derive("stride", store.path, "--by", "3", "--dtype", "int8")
    deduped = derive("dedup", store.path, "--output", "units")
    source, units = values(store.path, "layer-9"), values(store.path, "units")
    stacks = values(stacked["path"], "layer-9")
    strides = values(strided["path"], "layer-9-int8")
    once, durations = values(deduped["path"], "units"), values(deduped["path"], "durations")
    for name, frames in source.items():
        filled = np.concatenate([frames, np.zeros((-len(frames) % 4, 32), np.float16)])
        assert np.array_equal(stacks[name], np.concatenate([filled[i::4] for i in range(4)], axis=1))
        codes, affine, _ = keep(frames[::3], OUTPUTS[2])
        assert affine is not None
        assert np.array_equal(strides[name], codes * affine[0] + affine[1])
        assert np.array_equal(np.repeat(once[name], durations[name][:, 0]), units[name][:, 0])
        assert (np.diff(once[name][:, 0].astype(int)) != 0).all()
        assert durations[name].sum() == len(frames)
    other = FeatureStore(stacked["path"])
    assert other.fingerprint != store.fingerprint
    assert other.frame_rate == store.frame_rate / 4
    columns = ["id", "samples", "duration", "text", "speaker", "language", "metadata", "translation_de", "audio_sha256"]
    assert other.table.select(columns).sort_by("id").equals(store.table.select(columns).sort_by("id"))
    identity = read_feature_set(Path(stacked["path"]).parent).identity["identity"]
    assert identity["parent"] == store.fingerprint
    assert identity["derivation"] == {"operation": "stack", "frames": 4, "padding": "zeros"}
    for operation, *options in (("stack",), ("stride", "--by", "3", "--dtype", "int8"), ("dedup", "--output", "units")):
        assert derive(operation, store.path, *options)["derived"] == 0
    assert derive("stack", Path(str(store.path)).parents[1])["derived"] == 0  # a stack is not stacked again


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([1, 2, LONGEST_RUN, LONGEST_RUN + 1, 2 * LONGEST_RUN])), max_size=4
    )
)
def test_runs_give_back_the_units_and_none_is_too_long(pieces):
    units = np.repeat(np.array([unit for unit, _ in pieces], np.uint16), [count for _, count in pieces])
    if not len(units):
        return
    found, durations = runs(units)
    assert np.array_equal(np.repeat(found, durations), units)
    assert durations.min() >= 1
    same = found[1:] == found[:-1]
    assert (durations[:-1][same] == LONGEST_RUN).all()


def asked(path: Path, threads: int) -> None:
    feature_set = read_feature_set(path)
    for operation in (Cast("int8"), Pca("float16", 5)):
        derivation = request(feature_set, feature_set.splits(), operation, ["layer-9-float32"], f"x-{operation.name}")
        derive_split(derivation, feature_set.splits()[0], threads)
        feature_set = derivation.feature_set


def test_the_bytes_do_not_depend_on_the_number_of_threads_nor_on_being_killed(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home = set_of(store)
    one, killed = tmp_path / "one" / home.name, tmp_path / "killed" / home.name
    shutil.copytree(home, one)
    shutil.copytree(home, killed)
    asked(home, threads=4)
    asked(one, threads=1)
    assert contents(one) == contents(home)

    commit, made = SplitWriter.commit, []

    def stop(writer: SplitWriter, shard: int, *rest: Any) -> None:
        if len(made) >= 2:
            raise KeyboardInterrupt
        commit(writer, shard, *rest)
        made.append(shard)

    monkeypatch.setattr(SplitWriter, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        asked(killed, threads=2)
    assert FeatureStore(killed / "dev").outputs == store.outputs
    monkeypatch.setattr(
        SplitWriter, "commit", lambda writer, shard, *rest: (commit(writer, shard, *rest), made.append(shard))
    )
    asked(killed, threads=2)
    shards = len({*store.table["shard"].to_pylist()})
    assert shards > 2
    assert len(made) == 2 * shards  # none was made twice
    assert contents(killed) == contents(home)


def test_an_error_of_one_shard_ends_the_others_soon_and_is_the_one_that_is_told(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
):
    """The first shard takes its time; the second fails at once, with an error of the system that is not the shard file's."""
    home, rows = set_of(store), store.table.to_pylist()
    first = {row["frames"] for row in rows if row["shard"] == rows[0]["shard"]}
    made: list[int] = []

    def fail(values: np.ndarray, output: Output, room: np.ndarray) -> Any:
        if len(values) not in first:
            raise OSError(28, "broken")
        made.append(len(values))
        time.sleep(0.5)
        return keep(values, output, room)

    monkeypatch.setattr("encodeonce.store.derive.shards.keep", fail)
    with pytest.raises(OSError, match="broken"):
        asked(home, threads=2)
    assert len(made) <= 1
    assert not [*home.rglob("*.tmp*")]
    monkeypatch.undo()
    asked(home, threads=2)
    assert len(FeatureStore(home / "dev").outputs) == len(store.outputs) + 2


def test_another_split_gets_the_standing_transform_and_another_fit_needs_another_name(store: FeatureStore):
    write_store(set_of(store).parent, "test", prefix="test-")
    derive("normalise", store.path)
    kept = contents(set_of(store) / "transforms")
    derive("normalise", set_of(store) / "test")
    assert contents(set_of(store) / "transforms") == kept
    message = refused("normalise", store.path, "--fit", "test")
    assert "was fitted on dev, not on test" in message
    assert "--name" in message
    derive("normalise", store.path, "--fit", "test", "--name", "other")
    derivation = FeatureStore(store.path).spec("other").derivation
    assert derivation is not None
    assert derivation["fitted_on"] == ["test"]


def derive_all(path: Path) -> None:
    derive("cast", path, "--dtype", "int8")
    derive("normalise", path)
    derive("pca", path, "--output", "fbank-normalised", "--dimensions", "6")
    derive("mean", path, "--output", "fbank", "--output", "fbank-int8")


DERIVED = ("fbank-int8", "fbank-normalised", "fbank-normalised-pca6", "mean-of-fbank-fbank")


def test_utterances_that_come_later_get_what_deriving_afterwards_gives(tmp_path: Path):
    """Encoded ones, and copied ones: the same bytes, from the stored form of what they are derived from."""
    data, features = tmp_path / "data", tmp_path / "features"
    write_corpus(data / "a", [1.0, 1.7, 2.2])
    assert extract(data, "a", features).status == 0
    a = split_folder(features, "a")
    derive_all(a)
    write_corpus(data / "a", [1.3, 0.8], first=3)
    assert extract(data, "a", features).counts() == (2, 0, 3, 0)
    assert set(FeatureStore(a).outputs) == {"fbank", *DERIVED}

    write_corpus(data / "b", [1.0, 1.7, 2.2, 1.3, 0.8])
    assert extract(data, "b", features).counts() == (0, 5, 0, 0)  # the same audio: copied, with no derived output
    b = a.with_name("b")
    assert FeatureStore(b).outputs == ["fbank"]
    derive_all(b)
    for name in ("fbank", *DERIVED):
        first, second = values(a, name), values(b, name)
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first)

    write_corpus(data / "b", [2.0], first=5)
    write_corpus(data / "a", [2.0], first=5)
    assert extract(data, "a", features).counts() == (1, 0, 5, 0)
    assert extract(data, "b", features).counts() == (0, 1, 5, 0)
    for name in DERIVED:
        assert np.array_equal(values(a, name)["utt-005"], values(b, name)["utt-005"])

    write_corpus(data / "c", [1.1], first=6)  # a split without derived outputs, copied from into one that has them
    write_corpus(data / "a", [1.1], first=6)
    assert extract(data, "c", features).counts() == (1, 0, 0, 0)
    assert extract(data, "a", features).counts() == (0, 1, 6, 0)
    assert values(a, "fbank-normalised-pca6")["utt-006"].shape[1] == 6
    assert feature_store("verify", "--read-data", features).status == 0


def test_replaced_and_dropped_utterances_keep_their_derived_outputs_in_step(tmp_path: Path):
    data, features = tmp_path / "data", tmp_path / "features"
    write_corpus(data / "a", [1.0, 1.7, 2.2])
    extract(data, "a", features)
    a = split_folder(features, "a")
    derive("cast", a, "--dtype", "int8")
    derive("stack", a, "--output", "fbank")
    write_corpus(data / "a", [1.9], first=0)
    (data / "a" / "utt-002.wav").unlink()
    (data / "a" / "utt-002.txt").unlink()
    assert extract(data, "a", features, "--replace", "--drop-gone").counts() == (1, 0, 1, 0)
    again = derive("stack", a, "--output", "fbank")
    assert (again["utterances"], again["derived"]) == (2, 1)
    source, small, stacked = values(a, "fbank"), values(a, "fbank-int8"), values(again["path"], "fbank")
    assert source.keys() == small.keys() == {"utt-000", "utt-001"}
    for name, frames in source.items():
        codes, affine, _ = keep(frames, OUTPUTS[2])
        assert affine is not None
        assert np.array_equal(small[name], codes * affine[0] + affine[1])
        assert np.array_equal(stacked[name].reshape(-1, frames.shape[1])[: len(frames)], frames)
    assert feature_store("verify", "--read-data", features).status == 0


def test_feature_writer_appends_with_derived_outputs_and_says_when_a_transform_is_gone(store: FeatureStore):
    derive("pca", store.path, "--dimensions", "5")

    def write(prefix: str) -> Any:
        writer = FeatureWriter(set_of(store).parent, "toy", "dev", OUTPUTS, {"weights": "1"}, 16_000, 320)
        return writer.write([NewUtterance(f"{prefix}-1", 40)], lambda name: features(name, 40))

    assert write("more").written == 1
    found = values(store.path, "layer-9-pca5")["more-1"]
    shutil.rmtree(set_of(store) / "transforms")
    with pytest.raises(
        Exception, match=r"transforms.layer-9-pca5\.safetensors is not there, and layer-9-pca5 cannot be"
    ):
        write("again")
    assert found.shape == (40, 5)
    assert np.isfinite(found).all()


def test_verify_tells_of_a_transform_that_is_lost_or_changed(store: FeatureStore):
    derive("pca", store.path, "--dimensions", "3")
    (transform,) = (set_of(store) / "transforms").iterdir()
    data = transform.read_bytes()
    assert feature_store("verify", store.path).status == 0
    for wrong, said in ((None, "is not there"), (data[:-1] + bytes([data[-1] ^ 1]), "its values have sha256")):
        transform.unlink() if wrong is None else transform.write_bytes(wrong)
        done = feature_store("verify", store.path)
        assert (done.status, said in done.err, "from another copy of the store" in done.err) == (1, True, True)


def test_damage_is_not_derived_from(store: FeatureStore):
    shard = Path(str(store.path)) / "features.zarr" / "layer-9" / "c" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[2000] ^= 1
    shard.write_bytes(data)
    for arguments in (["normalise"], ["pca", "--dimensions", "3"], ["stack"]):
        message = refused(arguments[0], store.path, *arguments[1:], "--output", "layer-9")
        assert "is damaged: expected" in message
        assert "repair" in message
    shard.write_bytes(data[:-100])
    assert "should have" in refused("cast", store.path, "--dtype", "float32", "--name", "y", "--output", "layer-9")
    assert FeatureStore(store.path).outputs == store.outputs


def test_what_was_derived_of_damage_is_set_aside_with_it(store: FeatureStore):
    """Within a shard the source's own checksum is what tells."""
    derive("cast", store.path, "--dtype", "int8", "--output", "layer-9-float32", "--name", "small")
    shard = Path(str(store.path)) / "features.zarr" / "layer-9-float32" / "c" / "1" / "0"
    data = bytearray(shard.read_bytes())
    data[2000] ^= 1
    shard.write_bytes(data)
    assert "set 1 shards aside" in feature_store("repair", store.path).out
    assert not (shard.parents[3] / "small" / "c" / "1").exists()


def test_repair_names_the_command_that_fills_and_it_fills(store: FeatureStore, tmp_path: Path):
    derive("cast", store.path, "--dtype", "int8", "--output", "layer-9-float32", "--name", "a-small")
    stacked = Path(derive("stack", store.path, "--output", "layer-9")["path"])
    before = contents(stacked / "features.zarr")
    shard = stacked / "features.zarr" / "layer-9" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    done = feature_store("repair", stacked)
    command = done.out.split("Fill them with: ")[1].split()
    assert command[:3] == ["feature-store", "derive", "stack"]
    assert feature_store(*command[1:]).status == 0
    assert contents(stacked / "features.zarr") == before


def test_repair_asks_to_extract_what_an_encoder_gives(tmp_path: Path):
    data, features = tmp_path / "data", tmp_path / "features"
    write_corpus(data / "a", [1.0, 1.7])
    extract(data, "a", features, "--dtype", "float32")
    a = split_folder(features, "a")
    derive("normalise", a, "--name", "a-first")
    before = contents(a / "features.zarr")
    shard = a / "features.zarr" / "a-first" / "c" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "--dtype float32" in feature_store("repair", a).out
    assert extract(data, "a", features, "--dtype", "float32").status == 0
    assert contents(a / "features.zarr") == before


def test_extraction_does_not_write_over_a_derived_output(tmp_path: Path):
    data, features = tmp_path / "data", tmp_path / "features"
    write_corpus(data / "a", [1.0])
    extract(data, "a", features)
    derive("cast", features, "--dtype", "int8")
    derive("cast", features, "--dtype", "float16", "--output", "fbank-int8", "--name", "fbank-float32")
    done = extract(data, "a", features, "--dtype", "float32")
    assert done.status == 2
    said = done.err.strip().splitlines()[-1]
    assert "fbank-float32" in said
    assert "was derived from fbank-int8" in said
    assert "ask for fbank instead" in said  # what the encoder gave in the end
    assert feature_store(*said[said.index("feature-store drop") :].split()[1:]).status == 0
    assert extract(data, "a", features, "--dtype", "float32").status == 0
    assert FeatureStore(split_folder(features, "a")).spec("fbank-float32").derivation is None


@pytest.mark.parametrize(("narrow", "wide"), [("int8", "float16"), ("int8", "float32"), ("float16", "float32")])
def test_what_is_widened_leaves_the_name_of_what_an_encoder_gives(tmp_path: Path, narrow: str, wide: str):
    data, features = tmp_path / "data", tmp_path / "features"
    write_corpus(data / "a", [1.0])
    extract(data, "a", features, "--dtype", narrow)
    source = "fbank" if narrow == "float16" else f"fbank-{narrow}"
    name = derive("cast", features, "--dtype", wide, "--output", source)["output"]
    assert name.startswith(f"fbank-from-{narrow}")
    assert extract(data, "a", features, "--dtype", wide).status == 0
    found = FeatureStore(split_folder(features, "a"))
    assert {output: found.spec(output).dtype for output in found.outputs} == {
        source: narrow,
        name: wide,
        "fbank" if wide == "float16" else f"fbank-{wide}": wide,
    }


def two_sets(folder: Path) -> tuple[Path, Path]:
    """Feature sets of one store, of 2 layers and of 3; one utterance each."""
    paths, ramp = [], np.arange(40, dtype=np.float32).reshape(10, 4)
    for encoder, layers in (("base", 2), ("large", 3)):
        outputs = [Output(f"layer-{n:02d}", 4, "float16", f"hidden_states[{n}]") for n in range(1, layers + 1)]
        writer = FeatureWriter(folder, encoder, "dev", outputs, {"weights": encoder}, 16_000, 320)
        features = {output.name: ramp for output in outputs}
        writer.write([NewUtterance("one", 10)], {"one": features}.__getitem__)
        paths.append(Path(str(writer.path)))
    return paths[0], paths[1]


def test_of_sets_with_different_deepest_layers_none_is_taken_by_default(tmp_path: Path):
    base, large = two_sets(tmp_path)
    said = refused("cast", tmp_path, "--dtype", "int8")
    assert f"layer-02 of {base.parent.name}, layer-03 of {large.parent.name}" in said
    assert derive("cast", large.parent, "--dtype", "int8")["output"] == "layer-03-int8"
    assert derive("cast", tmp_path, "--dtype", "int8", "--encoder", large.parent.name)["path"] == str(large)
    assert derive("cast", tmp_path, "--dtype", "int8", "--encoder", large.parent.name, "--split", large.name)
    assert "no feature set of 'nobody'" in refused("cast", tmp_path, "--dtype", "int8", "--encoder", "nobody")
    done = feature_store("derive", "cast", tmp_path, "--dtype", "int8", "--output", "layer-02")
    assert (done.status, done.out.count("Derived layer-02-int8")) == (0, 2)


def test_units_in_a_store_are_made_of_the_encoder_that_was_clustered(tmp_path: Path):
    base, large = two_sets(tmp_path / "features")
    folder = kmeans_of(FeatureStore(large), 3, tmp_path / "km", output="layer-02", what="hidden_states[2]")
    assert derive("units", tmp_path / "features", "--kmeans", folder)["path"] == str(large)
    assert "holds another encoder's features" in refused("units", base, "--kmeans", folder)
    elsewhere = kmeans_of(FeatureStore(large), 3, tmp_path / "km3", output="layer-03", what="hidden_states[3]")
    said = refused("units", base, "--kmeans", elsewhere)  # which has no layer-03 either
    assert "was trained on layer-03 of large" in said
    assert "holds another encoder's features" in said


def test_a_kmeans_of_one_fit_is_not_applied_to_another(store: FeatureStore, tmp_path: Path):
    with_another_split(store)
    for name, split in (("ours", "dev"), ("theirs", "test")):
        command = ["normalise", set_of(store), "--output", "layer-9", "--fit", split, "--name", name]
        assert feature_store("derive", *map(str, command)).status == 0
    folder = kmeans_of(store, 3, tmp_path / "km", output="ours", what="normalised(hidden_states[9])")
    assert derive("units", store.path, "--kmeans", folder, "--name", "u")["derived"] == len(NAMES)
    assert "take the --output that it was trained on" in refused(
        "units", store.path, "--kmeans", folder, "--output", "theirs", "--name", "others"
    )


def test_deriving_leaves_what_a_store_gives_by_default(tmp_path: Path):
    write_corpus(tmp_path / "data" / "a", [1.0])
    extract(tmp_path / "data", "a", tmp_path / "features")
    for _ in range(2):  # the same commands find the same source
        for words in (["normalise"], ["pca", "--dimensions", "3"], ["cast", "--dtype", "float32", "--name", "z"]):
            assert derive(words[0], tmp_path / "features", *words[1:])["utterances"] == 1
        assert FeatureStore(split_folder(tmp_path / "features", "a")).output == "fbank"


def test_a_fit_needs_its_source_in_every_split_it_names_and_takes_each_once(store: FeatureStore):
    with_another_split(store)
    derive("normalise", store.path, "--output", "layer-9", "--name", "n")
    assert "test does not hold n; there are" in refused(
        "normalise", set_of(store), "--output", "n", "--fit", "dev", "--fit", "test"
    )
    derive("normalise", store.path, "--output", "layer-9", "--fit", "dev", "--fit", "dev", "--name", "twice")
    assert FeatureStore(store.path).spec("twice").derivation == FeatureStore(store.path).spec("n").derivation


def test_centres_that_are_gone_come_back_with_the_same_command(store: FeatureStore, tmp_path: Path):
    command = ["units", store.path, "--kmeans", kmeans_of(store, 3, tmp_path / "km"), "--name", "u"]
    derive(*command)
    books = read_feature_set(set_of(store)).codebooks("u")
    before = books.read_bytes()
    books.unlink()
    assert "run the command that made them again" in refused("latents", store.path, "--output", "u")
    assert derive(*command)["derived"] == 0
    assert books.read_bytes() == before


def test_quantizers_keep_their_numbers_where_frames_become_fewer(tmp_path: Path):
    output = Output("codes-1-3", 3, "uint16", "codes[1-3]", codebook_sizes=(4, 4, 4))
    writer = FeatureWriter(tmp_path / "features", "codec", "dev", [output], {"weights": "1"}, 16_000, 320)
    codes = np.arange(30, dtype=np.uint16).reshape(10, 3) % 4
    writer.write([NewUtterance("one", 10)], lambda _: codes)
    tables = [np.random.default_rng(n).standard_normal((4, 5)).astype(np.float32) for n in range(3)]
    Codebooks(tuple(map(Quantizer, tables))).write(writer.feature_set.codebooks(output.name))
    made = derive("stride", writer.path, "--by", "3", "--output", output.name)
    assert "holds quantizers 1 to 3" in refused("latents", made["path"], "--quantizers", "0-1")
    name = derive("latents", made["path"], "--quantizers", "2-3", "--dtype", "float32")["output"]
    assert np.array_equal(values(made["path"], name)["one"], tables[1][codes[::3, 1]] + tables[2][codes[::3, 2]])


WRONG: list[tuple[Sequence[str], str]] = [
    (["pca", "--output", "codes"], "pca takes features, and codes holds codes"),
    (["normalise", "--output", "units"], "normalise takes features"),
    (["cast", "--output", "codes", "--dtype", "int8"], "cast takes features"),
    (["mean", "--output", "codes", "--output", "layer-9"], "mean takes features"),
    (["stack", "--output", "codes"], "stack takes features"),
    (["latents", "--output", "layer-9"], "latents takes codes or units, and layer-9 holds features"),
    (["dedup", "--output", "layer-9"], "dedup takes codes or units"),
    (["dedup", "--output", "codes"], "dedup takes units or codes of one column, and codes has 4"),
    (["latents", "--output", "codes"], "codes.safetensors is not there"),
    (
        ["cast", "--output", "layer-7", "--dtype", "int8"],
        "there are codes, layer-9, layer-9-float32, layer-9-int8, units",
    ),
    (["pca", "--dimensions", "33"], "layer-9 has 32 dimensions; take 1 to 32"),
    (["pca", "--dimensions", "32", "--whiten"], "the frames vary along 31 directions only"),
    (["cast", "--output", "layer-9", "--dtype", "int8"], "has an output layer-9-int8 already"),
    (["cast", "--output", "layer-9", "--dtype", "float16"], "layer-9 is float16 already"),
    (["mean", "--layers", "9-10"], "holds no layer"),
    (["mean", "--output", "layer-9"], "give two different outputs or more"),
    (["normalise", "--fit", "train"], "--fit train: no such split"),
    (["cast", "--dtype", "int8", "--name", "a/b"], "'a/b' is no name of an output"),
    (["stride", "--by", "1"], "take 2 or more"),
    (["units", "--kmeans", "."], "holds no k-means"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), WRONG, ids=lambda value: "-".join(value) if isinstance(value, list) else ""
)
def test_what_cannot_be_derived_is_refused_in_a_line(store: FeatureStore, arguments: Sequence[str], message: str):
    before = contents(set_of(store).parent)
    assert message in refused(arguments[0], store.path, *arguments[1:])
    assert contents(set_of(store).parent) == before


def test_a_kmeans_of_something_else_is_refused(store: FeatureStore, tmp_path: Path):
    def with_kmeans(**changed: Any) -> str:
        folder = kmeans_of(store, 3, tmp_path / "km", **changed)
        return refused("units", store.path, "--kmeans", folder, "--output", "layer-9")

    assert "has 32; take the output" in with_kmeans(centres=np.eye(3, dtype=np.float32))
    assert "was trained on hidden_states[8], and layer-9 holds hidden_states[9]" in with_kmeans(what="hidden_states[8]")
    source = json.loads((tmp_path / "km" / "kmeans.json").read_text())["source"]
    source["identity"]["encoder"] = "another"
    assert "another encoder's features" in with_kmeans(source=source)


def test_values_that_do_not_fit_the_dtype_are_named(tmp_path: Path):
    store = write_store(tmp_path / "features")
    table = np.full((40, 2), 1e6, np.float32)
    Codebooks((Quantizer(table),)).write(read_feature_set(set_of(store)).codebooks("units"))
    message = refused("latents", store.path, "--output", "units")
    assert "do not fit float16; keep it as float32 or int8" in message
    assert "utterance 'anna-" in message or "utterance 'bert" in message


def test_deriving_in_an_object_store_is_deriving_on_disk(store: FeatureStore):
    far = store_path("memory://derive/features")
    assert isinstance(far, ObjectPath)
    home = set_of(store)
    for name, data in contents(home, times=True).items():
        (far / home.name / name).put(data)
    for place in (home.parent, far):
        for operation, *options in (["pca", "--dimensions", "3"], ["dedup", "--output", "units"]):
            assert feature_store("derive", operation, str(place), *options).status == 0
    for name, output in ((home.name, "layer-9-pca3"), ("toy-dedup", "durations")):
        (near,) = home.parent.glob(f"{name}*/dev")
        ours, theirs = FeatureStore(near), FeatureStore(far / near.parent.name / "dev", cache_bytes=0)
        assert all(np.array_equal(ours.read([u], output).values, theirs.read([u], output).values) for u in ours.ids)
