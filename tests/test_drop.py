"""Dropping outputs: no trace of them is left, what stays is whole wherever the command is stopped."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from commands import contents, extract, feature_store, split_folder, write_corpus
from encodeonce.store import FeatureStore
from encodeonce.store import files as store_files
from encodeonce.store.drop import drop_outputs
from encodeonce.store.errors import StoreError
from encodeonce.store.layout import SET_FILE, SplitPaths, read_attributes, read_feature_set
from encodeonce.store.locks import writer_lock
from encodeonce.store.objects import ObjectPath, StorePath
from encodeonce.store.writer import SplitWriter
from small_store import NAMES, features, with_another_split, write_store


class Killed(BaseException):
    """Stands for the end of the process."""


def derived(folder: Path) -> Path:
    """A store with outputs of every dtype, and one of int8 and one that was fitted; the folder of its feature set."""
    store = write_store(folder)
    assert feature_store("stats", store.path, "--output", "layer-9-int8").status == 0
    assert feature_store("derive", "pca", store.path, "--dimensions", "3", "--name", "trial").status == 0
    return Path(str(store.path)).parent


def drop(path: Any, *names: str) -> Any:
    """feature-store drop, which has to succeed."""
    done = feature_store("drop", path, *(word for name in names for word in ("--output", name)), "--json")
    assert done.status == 0, done.err
    return done.json["dropped"]


def refused(path: Any, *names: str) -> str:
    """What feature-store drop says of a request that is wrong: one line, and nothing is written."""
    before = contents(path, times=True)
    done = feature_store("drop", path, *(word for name in names for word in ("--output", name)))
    assert done.status == 2
    assert contents(path, times=True) == before
    return done.err.strip()


def traces(feature_set: Path, *names: str) -> list[str]:
    """Files and records that still speak of outputs."""
    arrays = {*names, *(f"{name}-affine" for name in names)}
    paths = [path for path in feature_set.rglob("*") if path.name in arrays or path.stem in names]
    records = [*feature_set.rglob("*.json")]
    return [str(path) for path in paths] + [
        str(path) for path in records if any(f'"{name}"' in path.read_text() for name in arrays)
    ]


def frames_of(split: Path) -> dict[str, np.ndarray]:
    """Every array that plain zarr sees."""
    return {name: np.asarray(array[:]) for name, array in zarr.open_group(str(split / "features.zarr")).arrays()}


def check_whole(split: Path, before: dict[str, np.ndarray]) -> None:
    """Our reader and verify find it whole, and plain zarr sees no array that lacks frames."""
    done = feature_store("verify", "--read-data", split)
    assert done.status == 0, done.err
    store = FeatureStore(split)
    for name, frames in NAMES.items():
        assert np.allclose(store[name].features, features(name, frames)["layer-9"], atol=0.1)
    found = frames_of(split)
    assert all(np.array_equal(array, before[name]) for name, array in found.items())
    assert found.keys() >= set(store.outputs) >= {"layer-9", "layer-9-float32", "codes", "units"}


def shards_seen(split: StorePath) -> dict[str, int]:
    """How many shards there are of every array that plain zarr sees."""
    arrays = [path.parent for path in (split / "features.zarr").glob("*/zarr.json")]
    return {array.name: len(list((array / "c").iterdir())) for array in arrays}


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch, functions: dict[str, Any]) -> Callable[[], bool]:
    """Let some calls of functions (name: owner) change things, and end at the next; tells whether it came to that."""
    state = {"left": count, "stopped": False}

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if not state["stopped"] and state["left"] == 0:
                state["stopped"] = True
                raise Killed
            state["left"] -= 1
            return function(*arguments, **options)

        return call

    for name, owner in functions.items():
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return lambda: bool(state["stopped"])


def test_no_trace_is_left_and_the_rest_stays_as_it_is(tmp_path: Path):
    feature_set = derived(tmp_path / "features")
    split = feature_set / "dev"
    arrays = [split / "features.zarr" / name for name in ("trial", "layer-9-int8", "layer-9-int8-affine")]
    sizes = sum(path.stat().st_size for array in arrays for path in array.rglob("*") if path.is_file())
    before, frames = contents(feature_set, times=True), frames_of(split)
    report = drop(tmp_path / "features", "trial", "layer-9-int8")
    assert report["forgotten"] == ["layer-9-int8", "trial"]
    assert [(entry["outputs"], entry["bytes"]) for entry in report["splits"]] == [(["layer-9-int8", "trial"], sizes)]
    assert traces(feature_set, "trial", "layer-9-int8") == []
    after = contents(feature_set, times=True)
    changed = {name for name in after if after[name] != before[name]}
    assert all(name.endswith(("features.zarr/zarr.json", SET_FILE)) or "/commits/" in name for name in changed)
    assert "dev/utterances.parquet" in after.keys() - changed
    check_whole(split, frames)


@pytest.mark.filterwarnings("ignore:Object at .* is not recognized")  # zarr tells of a folder that is being removed
def test_stopped_anywhere_it_is_whole_and_the_same_command_finishes_it(tmp_path: Path):
    original = derived(tmp_path / "original")
    frames = frames_of(original / "dev")
    stopped, count = True, 0
    while stopped:
        store = tmp_path / f"stopped-{count}"
        shutil.copytree(original.parent, store)
        with pytest.MonkeyPatch.context() as patch:
            was_stopped = stop_after(count, patch, dict.fromkeys(("replace", "unlink", "rmdir"), os))
            with suppress(Killed):
                drop_outputs(store, ["trial", "layer-9-int8"])
            stopped = was_stopped()
        (feature_set,) = (path.parent for path in store.glob(f"*/{SET_FILE}"))
        check_whole(feature_set / "dev", frames)
        # Another writer comes first, which finds half of it.
        with SplitWriter(feature_set / "dev", read_attributes(SplitPaths(feature_set / "dev").group)):
            pass
        check_whole(feature_set / "dev", frames)
        if traces(feature_set, "trial", "layer-9-int8"):
            left = [n for n in ("trial", "layer-9-int8") if n in read_feature_set(feature_set).outputs]
            drop(store, *left)
        assert traces(feature_set, "trial", "layer-9-int8") == []
        check_whole(feature_set / "dev", frames)
        shutil.rmtree(store)
        count += 1
    assert count > 20


def test_dropping_in_an_object_store_is_dropping_on_disk_wherever_it_stops(tmp_path: Path, memory: ObjectPath):
    original = derived(tmp_path / "features")
    files, shards = contents(original, times=True), shards_seen(original / "dev")
    drop(original, "layer-9-int8", "trial")
    wanted = contents(original)
    stopped, count = True, 0
    while stopped:
        far = memory / f"stopped-{count}" / original.name
        for name, data in files.items():
            (far / name).put(data)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store_files, "delete", lambda paths: [path.unlink() for path in sorted(paths)])
            was_stopped = stop_after(count, patch, dict.fromkeys(("put", "unlink"), ObjectPath))
            with suppress(Killed):
                drop_outputs(far, ["layer-9-int8", "trial"])
            stopped = was_stopped()
        assert feature_store("verify", "--read-data", far).status == 0
        assert shards_seen(far / "dev").items() <= shards.items()
        if listed := {"layer-9-int8", "trial"} & read_feature_set(far).outputs.keys():
            drop_outputs(far, listed)
        left = {path.relative_to(far).as_posix() for path in far.sizes_below()}
        assert left - {".lock", "dev/.writer"} == wanted.keys()  # leases of a killed process run out by themselves
        count += 1
    assert count > 10


def test_a_split_may_drop_it_alone_and_the_set_forgets_it_with_the_last(tmp_path: Path):
    store = with_another_split(write_store(tmp_path / "features"))
    (feature_set,) = (path.parent for path in tmp_path.glob(f"features/*/{SET_FILE}"))
    report = drop(feature_set / "dev", "layer-9-int8")
    assert [entry["split"] for entry in report["splits"]] == ["dev"]
    assert report["forgotten"] == []
    assert "layer-9-int8" not in FeatureStore(feature_set / "dev").outputs
    assert "layer-9-int8" in FeatureStore(feature_set / "test").outputs
    assert feature_store("verify", feature_set).status == 0
    for name in ("layer-9-int8", "layer-8"):
        message = f"has no output {name}; there are codes, layer-9, layer-9-float32, units"
        assert refused(feature_set / "dev", name).endswith(message)
    assert drop(feature_set, "layer-9-int8")["forgotten"] == ["layer-9-int8"]
    assert traces(feature_set, "layer-9-int8") == []
    assert len(store) == 2 * len(NAMES)


def test_what_may_not_go_is_refused_in_a_line(tmp_path: Path):
    feature_set = derived(tmp_path / "features")
    split = feature_set / "dev"
    assert "has no output layer-8; there are codes, layer-9, layer-9-float32" in refused(split, "layer-8")
    assert "trial of" in (message := refused(feature_set, "layer-9"))
    assert "is derived from layer-9; later utterances get it only with that: drop it too" in message
    everything = ("codes", "layer-9", "layer-9-float32", "layer-9-int8", "trial", "units")
    assert "would have no output left without codes, layer-9" in refused(feature_set, *everything)
    assert feature_store("derive", "stride", split).status == 0
    assert "has no output layer-8; there are codes" in refused(tmp_path / "features", "layer-8")
    assert "several feature sets hold layer-9 (" in refused(tmp_path / "features", "layer-9")
    with writer_lock(split), pytest.raises(StoreError, match="is being written by process"):
        drop_outputs(feature_set, ["trial"])
    drop(feature_set, "trial", "layer-9")
    assert FeatureStore(split).outputs == ["codes", "layer-9-float32", "layer-9-int8", "units"]


def test_a_derivation_that_failed_half_way_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    feature_set = derived(tmp_path / "features")
    frames = frames_of(feature_set / "dev")
    commit, made = SplitWriter.write_commit, []

    def breaking(writer: SplitWriter, record: Any) -> None:
        if made:
            raise StoreError("no room left")
        made.append(commit(writer, record))

    with monkeypatch.context() as patch:
        patch.setattr(SplitWriter, "write_commit", breaking)
        assert feature_store("derive", "cast", feature_set / "dev", "--dtype", "int8", "--name", "half").status == 2
    assert (feature_set / "dev" / "unfinished" / "half").is_dir()
    assert drop(feature_set, "half")["forgotten"] == ["half"]
    assert traces(feature_set, "half") == []
    assert not (feature_set / "dev" / "unfinished").exists()
    check_whole(feature_set / "dev", frames)


def test_later_utterances_come_without_it_and_asking_again_makes_it_again(tmp_path: Path):
    data, store = tmp_path / "data", tmp_path / "features"
    write_corpus(data / "dev", [0.8, 1.1, 0.7])
    assert extract(data, "dev", store).status == 0
    assert extract(data, "dev", store, "--dtype", "int8").status == 0
    split = split_folder(store, "dev")
    fit = ("derive", "pca", store, "--output", "fbank", "--name", "trial", "--dimensions")
    assert feature_store(*fit, "3").status == 0
    (split.parent / "transforms" / "trial.safetensors").unlink()
    drop(store, "trial", "fbank-int8")  # also where its transform was lost, which made appending impossible
    write_corpus(data / "dev", [0.9], first=3)
    assert extract(data, "dev", store).counts() == (1, 0, 3, 0)
    assert FeatureStore(split).outputs == ["fbank"]
    assert extract(data, "dev", store, "--dtype", "int8").counts() == (4, 0, 0, 0)
    assert feature_store(*fit, "2").status == 0
    assert FeatureStore(split).spec("trial").width == 2
    assert feature_store("verify", "--read-data", store).status == 0
    assert all(len(json.loads(path.read_text())["outputs"]) == 3 for path in split.glob("commits/*.json"))
