"""FeatureWriter: somebody else's features, stored with the guarantees of extraction."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from commands import contents, feature_store
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output, StoreError
from plain_readers import read_both

FLOATS = Output("layer-9", 32, "float16", "hidden_states[9]")
CODES = Output("codes", 4, "uint16", "codes of 4 quantizers")
UNITS = Output("units", 1, "uint16", "k-means")
INT8 = Output("layer-9-int8", 32, "int8", "hidden_states[9]")
SHARD_FRAMES = 256
NAMES = {f"utt-{i:02d}": 20 + 13 * i for i in range(12)}
"""Utterances and their frames."""


def features(name: str) -> dict[str, np.ndarray]:
    """Every output of an utterance: a function of its name."""
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))
    values = generator.standard_normal((NAMES.get(name, 30), 32)).astype(np.float32)
    codes = generator.integers(0, 65536, (len(values), 4))
    return {"layer-9": values, "layer-9-int8": values, "codes": codes, "units": codes[:, :1].astype(np.uint16)}


def listed(names: Mapping[str, int] = NAMES, **said: Any) -> list[NewUtterance]:
    return [NewUtterance(name, frames, **said) for name, frames in names.items()]


def writer(
    store: Path | str, *outputs: Output, identity: Mapping[str, Any] | None = None, shard_frames: int = SHARD_FRAMES
) -> FeatureWriter:
    identity = {"weights": "sha256 1"} if identity is None else identity
    return FeatureWriter(store, "my encoder", "dev", outputs or [FLOATS], identity, 16_000, 320, shard_frames)


def at(writer: FeatureWriter) -> Path:
    """The split's folder."""
    assert isinstance(writer.path, Path)
    return writer.path


def rows(path: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in pq.read_table(path / "utterances.parquet").to_pylist()}


def test_every_dtype_is_read_back_by_plain_zarr_and_webdataset(tmp_path):
    ours = writer(tmp_path, FLOATS, INT8, CODES, UNITS)
    report = ours.write(listed(), features)
    assert (report.utterances, report.written, report.reused, report.failed) == (12, 12, 0, {})
    assert ours.path.parent.name.startswith("my-encoder-")
    for output in (FLOATS, INT8, CODES, UNITS):
        stored = read_both(at(ours), output.name)
        assert stored.keys() == NAMES.keys()
        for name, values in stored.items():
            wanted = features(name)[output.name]
            if output is INT8:
                assert np.abs(values - wanted).max() <= 0.501 * np.ptp(wanted, axis=0).max() / 255
            else:
                assert np.array_equal(values, wanted.astype(output.dtype))
    commits = [json.loads(path.read_text()) for path in (at(ours) / "commits").iterdir()]
    assert len(commits) > 3
    for commit in commits:
        assert commit["outputs"]["codes"]["snr_db"] is None
        assert commit["outputs"]["layer-9"]["snr_db"]["least"] > 60
        assert 35 < commit["outputs"]["layer-9-int8"]["snr_db"]["least"] < 60
    assert feature_store("verify", tmp_path, "--read-data").status == 0


def test_what_is_said_of_an_utterance_is_in_the_table_and_can_be_corrected(tmp_path):
    digest = hashlib.sha256(b"audio").hexdigest()
    first = NewUtterance(
        "a/b.c",
        30,
        samples=9_700,
        text="hallo",
        speaker="s",
        language="de",
        translations={"en": "hello"},
        metadata={"topic": [1, "x"]},
        audio="a.wav",
        offset=1.5,
        channel=1,
        audio_sha256=digest,
    )
    ours = writer(tmp_path)
    ours.write([first, NewUtterance("plain", 30)], features)
    stored = FeatureStore(at(ours))["a/b.c"]
    assert (stored.text, stored.speaker, stored.language) == ("hallo", "s", "de")
    assert (stored.translations, stored.metadata) == ({"en": "hello"}, {"topic": [1, "x"]})
    row = rows(at(ours))["a/b.c"]
    assert (row["samples"], row["duration"], row["audio_sha256"]) == (9_700, 9_700 / 16_000, digest)
    assert (row["audio"], row["offset"], row["channel"]) == ("a.wav", 1.5, 1)
    assert rows(at(ours))["plain"]["samples"] == 30 * 320

    mended = NewUtterance("a/b.c", 30, text="hallo!", translations={"fr": "salut"})
    assert ours.write([mended], refuse).reused == 1
    after = FeatureStore(at(ours))["a/b.c"]
    assert (after.text, after.speaker) == ("hallo!", "s")
    assert after.translations == {"en": "hello", "fr": "salut"}


def refuse(name: str) -> np.ndarray:
    raise AssertionError(f"{name} was asked for")


def test_audio_that_nobody_named_equals_no_other(tmp_path):
    for store in (
        writer(tmp_path),
        FeatureWriter(tmp_path, "my encoder", "test", [FLOATS], {"weights": "sha256 1"}, 16_000, 320),
    ):
        store.write(listed(), lambda name: np.zeros((NAMES[name], 32), np.float32))
    hashes = [
        row["audio_sha256"] for split in ("dev", "test") for row in rows(next(tmp_path.glob(f"*/{split}"))).values()
    ]
    assert len(set(hashes)) == 24
    assert not any(len(text) == 64 for text in hashes)
    known = [NewUtterance("utt-00", NAMES["utt-00"], audio_sha256="a" * 64)]
    assert writer(tmp_path).write(known, refuse).reused == 1


def test_a_second_call_appends_and_touches_no_finished_shard(tmp_path):
    ours = writer(tmp_path)
    ours.write(listed(), features)
    before = contents(at(ours) / "features.zarr" / "layer-9" / "c", times=True)
    asked = []
    more = {**NAMES, "new-1": 30, "new-2": 30}
    report = writer(tmp_path).write(listed(more), lambda name: asked.append(name) or features(name))
    assert (report.written, report.reused) == (2, 12)
    assert sorted(asked) == ["new-1", "new-2"]
    after = contents(at(ours) / "features.zarr" / "layer-9" / "c", times=True)
    assert {name: after[name] for name in before} == before
    assert read_both(at(ours), "layer-9").keys() == more.keys()


@pytest.mark.parametrize("after", [0, 1, 5, 11])
def test_a_call_that_ends_in_an_error_keeps_what_is_finished_and_resumes_to_the_same_bytes(tmp_path, after):
    whole = writer(tmp_path / "whole", FLOATS, INT8)
    whole.write(listed(text="x"), features)
    asked: list[str] = []

    def breaking(name: str) -> dict[str, np.ndarray]:
        if len(asked) == after:
            raise RuntimeError("out of memory")
        asked.append(name)
        return features(name)

    cut = writer(tmp_path / "cut", FLOATS, INT8)
    with pytest.raises(RuntimeError, match="out of memory"):
        cut.write(listed(text="x"), breaking)
    kept = set(rows(at(cut))) if (at(cut) / "utterances.parquet").exists() else set()
    assert kept <= set(asked)
    missing = []
    report = cut.write(listed(text="x"), lambda name: missing.append(name) or features(name))
    assert sorted(missing) == sorted(NAMES.keys() - kept)
    assert (report.written, report.reused) == (12 - len(kept), len(kept))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


# Writes again and again, each time in a child that kills itself at one of its file operations; prints how each child ended.
KILLED = """
import os, signal, sys
from pathlib import Path
import test_feature_writer as t

def run_child(kill_at):
    count = 0
    def counting(work):
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            if count == kill_at: os.kill(os.getpid(), signal.SIGKILL)
            return work(*arguments, **options)
        return operation
    os.replace, os.fsync = counting(os.replace), counting(os.fsync)
    t.writer(Path(sys.argv[1])).write(t.listed(), t.features)

for point in map(int, sys.argv[2].split(",")):
    child = os.fork()
    if not child:
        run_child(point)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_killed_anywhere_it_resumes_to_the_same_bytes(tmp_path):
    writer(tmp_path / "whole").write(listed(), features)
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), "2,3,5,9,12,14,17,21,24,8,3"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert done.stdout.split().count(str(int(signal.SIGKILL))) >= 9
    writer(tmp_path / "cut").write(listed(), features)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


BAD = {
    "nan": (np.full((20, 32), np.nan, np.float32), "NaN or infinity"),
    "overflow": (np.full((20, 32), 1e5, np.float32), "do not fit float16"),
    "frames": (np.zeros((19, 32), np.float32), "19 frames came, 20 were announced"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_stored_is_a_named_failure_and_the_others_stand(tmp_path, kind):
    bad, reason = BAD[kind]
    ours = writer(tmp_path)
    report = ours.write(listed(), lambda name: bad if name == "utt-00" else features(name)["layer-9"])
    assert (report.written, list(report.failed)) == (11, ["utt-00"])
    assert reason in report.failed["utt-00"]
    (entry,) = map(json.loads, (at(ours) / "failures.jsonl").read_text().splitlines())
    assert (entry["id"], entry["reason"]) == ("utt-00", report.failed["utt-00"])
    assert len(read_both(at(ours), "layer-9")) == 11

    before = contents(tmp_path, times=True)
    again = ours.write(listed(), lambda name: bad)
    assert (again.written, again.reused, list(again.failed)) == (0, 11, ["utt-00"])
    assert contents(tmp_path, times=True) == before  # no plan for what fails again
    assert ours.write(listed(), features).written == 1
    assert not (at(ours) / "failures.jsonl").exists()
    assert len(read_both(at(ours), "layer-9")) == 12


def test_codes_must_be_whole_numbers_that_uint16_holds(tmp_path):
    wrong = {"utt-00": np.full((20, 1), 65_536), "utt-01": np.full((33, 1), -1), "utt-02": np.full((46, 1), 0.5)}
    report = writer(tmp_path, UNITS).write(listed(), lambda name: wrong.get(name, features(name)["units"]))
    assert {
        name: "no whole number from 0 to 65535" in reason for name, reason in report.failed.items()
    } == dict.fromkeys(wrong, True)


WRONG = {
    "width": (lambda: np.zeros((20, 31)), r"\[20, 31\] float64; expected numbers of shape \[\d+, 32\]"),
    "one axis": (lambda: np.zeros(20), r"as \[20\] float64"),
    "text": (lambda: np.full((20, 32), "a"), "expected numbers"),
    "name": (lambda: {"layer-8": np.zeros((20, 32))}, "gave no 'layer-9'; it gave layer-8"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_features_of_the_wrong_kind_end_the_call_and_leave_a_store_to_go_on_with(tmp_path, kind):
    make, message = WRONG[kind]
    ours = writer(tmp_path)
    with pytest.raises(StoreError, match=message):
        ours.write(listed(), lambda name: make())
    assert ours.write(listed(), features).written == 12


def test_other_frames_or_audio_under_a_known_id_are_refused_by_name_and_can_be_replaced(tmp_path):
    ours = writer(tmp_path)
    ours.write(listed(audio_sha256="0" * 64), features)
    changed = [NewUtterance("utt-03", 30), NewUtterance("utt-04", NAMES["utt-04"], audio_sha256="1" * 64)]
    other = np.ones((100, 32), np.float32)
    report = ours.write(changed, refuse)
    assert "stands with 59 frames, and now has 30 frames; write(..., replace=True)" in report.failed["utt-03"]
    assert "other audio" in report.failed["utt-04"]
    before = read_both(at(ours), "layer-9")
    report = ours.write(changed, lambda name: other[: 30 if name == "utt-03" else NAMES[name]], replace=True)
    assert (report.written, report.failed) == (2, {})
    after = read_both(at(ours), "layer-9")
    assert after["utt-03"].shape == (30, 32)
    assert (after["utt-04"] == 1).all()
    assert all(np.array_equal(after[name], before[name]) for name in NAMES if name not in ("utt-03", "utt-04"))
    assert rows(at(ours))["utt-04"]["audio_sha256"] == "1" * 64
    assert feature_store("verify", tmp_path, "--read-data").status == 0


def test_an_output_can_join_later_and_has_to_cover_every_utterance(tmp_path):
    ours = writer(tmp_path)
    ours.write(listed(), features)
    both = writer(tmp_path, FLOATS, CODES)
    assert both.path == ours.path
    few = dict(list(NAMES.items())[:5])
    with pytest.raises(
        StoreError, match=r"codes cannot be added to .*7 utterances that it holds are not among those given"
    ):
        both.write(listed(few), features)
    assert FeatureStore(at(ours)).outputs == ["layer-9"]
    assert both.write(listed(), features).written == 12
    assert np.array_equal(read_both(at(ours), "codes")["utt-07"], features("utt-07")["codes"])
    with pytest.raises(StoreError, match="holds codes too"):
        writer(tmp_path).write(listed(), features)


def test_an_output_that_cannot_be_stored_everywhere_is_not_shown(tmp_path):
    ours, both = writer(tmp_path), writer(tmp_path, FLOATS, INT8)
    ours.write(listed(), features)
    before = read_both(at(ours), "layer-9")
    report = both.write(
        listed(), lambda name: {"layer-9-int8": features(name)["layer-9"] * (np.nan if name == "utt-02" else 1)}
    )
    assert list(report.failed) == ["utt-02"]
    assert FeatureStore(at(ours)).outputs == ["layer-9"]
    assert read_both(at(ours), "layer-9").keys() == before.keys()
    again = both.write(listed(), features)
    assert 0 < again.written < 12
    assert read_both(at(ours), "layer-9-int8").keys() == before.keys()
    assert not (at(ours) / "failures.jsonl").exists()


def test_a_damaged_store_is_refused_and_after_repair_filled_again(tmp_path):
    ours = writer(tmp_path)
    ours.write(listed(), features)
    whole = contents(at(ours))
    shard = at(ours) / "features.zarr" / "layer-9" / "c" / "1" / "0"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(StoreError, match="feature-store repair"):
        ours.write(listed(), features)
    mended = feature_store("repair", tmp_path)
    assert (mended.status, "Fill them with: FeatureWriter.write" in mended.out) == (0, True)
    shutil.rmtree(at(ours) / "damaged")
    assert 0 < ours.write(listed(), features).written < 12
    assert contents(at(ours)) == whole


def test_what_is_planned_and_not_given_any_more_is_named_and_can_come_later(tmp_path):
    ours = writer(tmp_path)
    with pytest.raises(ZeroDivisionError):
        ours.write(listed(), lambda name: features(name) if 1 / 0 else {})
    few = {name: frames for name, frames in NAMES.items() if name != "utt-05"}
    report = ours.write([*listed(few)], features)
    assert (report.written, list(report.failed)) == (11, ["utt-05"])
    assert "not among the utterances given" in report.failed["utt-05"]
    assert ours.write(listed(), features).written == 1


REFUSED = {
    "no output": (lambda store: FeatureWriter(store, "e", "dev", [], {}, 16_000, 320), "no output was given"),
    "dtype": (lambda store: writer(store, Output("a", 3, "float64", "")), "'float64' is none of float16"),
    "width": (lambda store: writer(store, Output("a", 0, "int8", "")), "width 0"),
    "output name": (lambda store: writer(store, Output("a/b", 3, "int8", "")), "'a/b' is no name of an output"),
    "affine": (lambda store: writer(store, Output("a-affine", 3, "int8", "")), "no name of an output"),
    "twice": (lambda store: writer(store, FLOATS, FLOATS), "'layer-9' comes twice"),
    "identity": (lambda store: writer(store, identity={"a": object()}), "no plain JSON"),
    "split": (lambda store: FeatureWriter(store, "e", "../dev", [FLOATS], {}, 16_000, 320), "no name of a split"),
    "two of an id": (lambda store: writer(store).write([*listed(), *listed()], features), "'utt-00' comes twice"),
    "empty id": (lambda store: writer(store).write([NewUtterance("", 3)], features), "no utterance id"),
    "metadata": (lambda store: writer(store).write(listed(metadata={"a": {1}}), features), "cannot be described"),
    "text": (lambda store: writer(store).write(listed(text=b"a"), features), "expected a text or None"),
    "hash": (lambda store: writer(store).write(listed(audio_sha256="abc"), features), "expected 64 hex digits"),
    "one array of two": (
        lambda store: writer(store, FLOATS, CODES).write(listed(), lambda name: features(name)["layer-9"]),
        "gave one array; give layer-9, codes by name",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_makes_no_sense_is_refused_with_its_name(tmp_path, kind):
    call, message = REFUSED[kind]
    with pytest.raises(StoreError, match=message):
        call(tmp_path)
    assert not list(tmp_path.rglob("commits"))


def test_an_output_of_the_set_cannot_change_and_another_identity_is_another_set(tmp_path):
    ours = writer(tmp_path)
    ours.write(listed(), features)
    with pytest.raises(StoreError, match="give the output another name"):
        writer(tmp_path, Output("layer-9", 64, "float16", "hidden_states[9]"))
    assert writer(tmp_path, identity={"weights": "sha256 2"}).path.parent != ours.path.parent


def test_what_does_not_fit_a_shard_of_a_standing_split_or_has_no_frames_is_a_named_failure(tmp_path):
    ours = writer(tmp_path)
    ours.write(listed(), features)
    report = ours.write([NewUtterance("long", 300), NewUtterance("none", 0)], features)
    assert "300 frames do not fit a shard of 256" in report.failed["long"]
    assert "nothing to store" in report.failed["none"]


def test_a_store_in_memory_gets_the_same_objects(tmp_path):
    ours, far = writer(tmp_path, FLOATS, INT8), writer("memory://feature-writer/store", FLOATS, INT8)
    for some in (ours, far):
        assert some.write(listed(text="x"), features).written == 12
    store = FeatureStore(far.path)
    assert (len(store), store.outputs) == (12, FeatureStore(at(ours)).outputs)
    for name, values in read_both(at(ours), "layer-9").items():
        assert np.array_equal(store[name]["layer-9"], values)
    for path in (at(ours) / "features.zarr").rglob("*"):
        if path.is_file():
            assert (far.path / path.relative_to(at(ours)).as_posix()).read_bytes() == path.read_bytes()
