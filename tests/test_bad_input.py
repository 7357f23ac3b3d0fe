"""Bad input: one clear line and the right exit status each, the other utterances unharmed."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from checkpoints import FAMILIES
from commands import RATE, extract, feature_store, speech, split_folder, write_corpus
from encodeonce.extract.encoders.registry import HUB
from encodeonce.store import FeatureStore
from plain_readers import read_both


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "data" / "dev", [0.5, 0.8, 0.6])
    return tmp_path / "data"


def truncated_flac(path: Path) -> None:
    soundfile.write(path, speech(3.0, 5), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def nan_samples(path: Path) -> None:
    samples = speech(0.5, 6)
    samples[100] = np.nan
    soundfile.write(path, samples, RATE, subtype="FLOAT")


BROKEN = {
    "truncated.flac": (truncated_flac, "truncated|decoded"),
    "empty.wav": (lambda path: path.write_bytes(b""), "empty"),
    "text.flac": (lambda path: path.write_text("this is text"), "no audio that can be decoded"),
    "short.wav": (lambda path: soundfile.write(path, np.zeros(160), RATE), "too short: 160 samples"),
    "nan.wav": (nan_samples, "NaN"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_utterance_that_cannot_be_used_is_named_and_the_others_unharmed(data, tmp_path, name):
    make, reason = BROKEN[name]
    make(data / "dev" / name)
    for _ in range(2):
        done = extract(data, "dev", tmp_path / "s")
        assert (done.status, done.split["failed"], done.split["utterances"]) == (1, 1, 4)
        (line,) = [line for line in done.err.splitlines() if line.startswith("failed: ")]
        assert re.search(reason, line)
        assert name in line
        assert "Traceback" not in done.err
    split = split_folder(tmp_path / "s", "dev")
    assert len(read_both(split, "fbank")) == 3
    (entry,) = [json.loads(line) for line in (split / "failures.jsonl").read_text().splitlines()]
    assert entry["id"] == Path(name).stem
    # mended, it is taken in by the next run
    for old in (data / "dev").glob(f"{Path(name).stem}.*"):
        old.unlink()
    soundfile.write(data / "dev" / f"{Path(name).stem}.wav", speech(0.7, 9), RATE)
    assert extract(data, "dev", tmp_path / "s").counts() == (1, 0, 3, 0)
    assert not (split / "failures.jsonl").exists()
    assert len(read_both(split, "fbank")) == 4


def test_strange_ids_are_stored_under_their_true_names_and_nowhere_else(data, tmp_path):
    names = ["a/b", "../../escape", "v1.2.final", "with space", "ünï-日本", "x" * 200, "per%2Fcent", "~", "-rf"]
    rows = [{"id": name, "audio": "dev/utt-000.wav"} for name in names]
    (data / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = extract(data, "m", tmp_path / "s")
    assert (done.status, done.counts()) == (0, (len(names), 0, 0, 0))
    split = split_folder(tmp_path / "s", "m")
    assert sorted(read_both(split, "fbank")) == sorted(FeatureStore(split).ids) == sorted(names)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "s"}
    assert not list(tmp_path.rglob("*escape*"))


def test_duplicate_ids_and_bad_lines_are_named_by_line(data, tmp_path):
    good = {"id": "one", "audio": "dev/utt-000.wav"}
    lines = [json.dumps(good), '{"id": "broken', json.dumps({**good, "audio": "dev/utt-001.wav"}), '{"id": "two"}']
    lines.append(json.dumps({"id": "three", "audio": "dev/utt-002.wav"}))
    (data / "m.jsonl").write_text("\n".join(lines))
    done = extract(data, "m", tmp_path / "s")
    assert (done.status, done.counts()) == (1, (2, 0, 0, 3))
    for number in (2, 3, 4):
        assert f"m.jsonl:{number}" in done.err
    assert FeatureStore(split_folder(tmp_path / "s", "m"))["one"].features.shape == (
        48,
        80,
    )  # 0.5 s: the first of the two


def test_requests_that_are_wrong_end_with_2_and_say_the_way_out(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty-hub"))
    no_weights = tmp_path / "no-weights"
    no_weights.mkdir()
    (no_weights / "config.json").write_text('{"model_type": "hubert"}')
    cases = [
        (extract(data, "dve", tmp_path / "s"), "dev"),
        (extract(tmp_path / "nowhere", "dev", tmp_path / "s"), "--data"),
        (extract(data, "dev", tmp_path / "s", encoder="hubert-larg"), "hubert-large"),
        (extract(data, "dev", tmp_path / "s", encoder=str(no_weights)), "no weights"),
        (extract(data, "dev", tmp_path / "s", encoder="onnx:nowhere.onnx"), "nowhere.onnx"),
        (extract(data, "dev", tmp_path / "s", "--layers", "9"), "--layers"),
        (extract(data, "dev", tmp_path / "s", "--dtype", "float61"), "float16"),
        (extract(data, "dev", tmp_path / "s", "--device", "gpu"), "cuda"),
        (extract(data, "../dev", tmp_path / "s"), "../dev"),
        (extract(data, "dev", data / "dev" / "utt-000.wav" / "s"), "give a folder that can be written"),
        (extract(data, "dev", tmp_path / "s", "--limit", "0"), "--limit"),
        (extract(data, "dev", tmp_path / "s", "--cut-seconds", "inf"), "--cut-seconds"),
        (extract(data, "dev", tmp_path / "s", "--batch-seconds", "nan"), "--batch-seconds"),
        (extract(data, "dev", tmp_path / "s", "--workers", "-1"), "--workers"),
        (extract(data, "dev", tmp_path / "s", "--batch-second", "3"), "--batch-seconds"),
    ]
    for done, word in cases:
        assert done.status == 2, done.err
        assert word in done.err
        assert "Traceback" not in done.err
        assert done.out == ""
    assert not (tmp_path / "s").exists()


def test_a_checkpoint_that_is_not_here_names_a_local_folder_as_the_way_out(data, tmp_path):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "encodeonce.extract.cli", "--encoder", "hubert-large", "--split", "dev"]
    done = subprocess.run(
        [*command, "--data", str(data)], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 2
    assert HUB["hubert-large"] in done.stderr
    assert "--encoder ./" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_ends_the_run_with_what_is_finished_kept(data, tmp_path, monkeypatch, code):
    write_corpus(data / "dev", [1.5, 1.2, 1.1], first=5)
    true_fsync, room = os.fsync, [28]

    def fsync(handle: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(code, os.strerror(code))
        true_fsync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    done = extract(data, "dev", tmp_path / "s", "--shard-frames", "256")
    assert done.status == 2
    assert "no room left" in done.err
    monkeypatch.setattr(os, "fsync", true_fsync)
    split = split_folder(tmp_path / "s", "dev")
    kept = sum(json.loads(path.read_text())["utterances"] for path in (split / "commits").iterdir())
    assert kept > 0
    assert not list(tmp_path.rglob("*.tmp"))
    assert extract(data, "dev", tmp_path / "s").counts() == (6 - kept, 0, kept, 0)


def test_a_store_that_does_not_fit_is_refused_before_anything_is_encoded(data, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    done = extract(data, "dev", tmp_path / "s")
    assert done.status == 2
    assert "MB free" in done.err


def test_an_utterance_that_outgrows_the_shards_is_a_named_failure(data, tmp_path):
    assert extract(data, "dev", tmp_path / "s", "--shard-frames", "1").counts() == (3, 0, 0, 0)
    soundfile.write(data / "dev" / "long.wav", speech(3.0, 1), RATE)
    done = extract(data, "dev", tmp_path / "s")
    assert (done.status, done.counts()) == (1, (0, 0, 3, 1))
    assert "do not fit a shard of 128" in done.err


def test_a_second_writer_is_told_who_is_writing(data, tmp_path):
    from encodeonce.store.locks import writer_lock

    extract(data, "dev", tmp_path / "s")
    with writer_lock(split_folder(tmp_path / "s", "dev")):
        done = extract(data, "dev", tmp_path / "s")
    assert done.status == 2
    assert f"process {os.getpid()}" in done.err
    assert extract(data, "dev", tmp_path / "s").counts() == (0, 0, 3, 0)


def with_length(path: Path, high: int, low: bytes) -> None:
    """A FLAC whose header states another number of samples: the last 36 bits before STREAMINFO's MD5."""
    soundfile.write(path, speech(0.5, 5), RATE)
    raw = bytearray(path.read_bytes())
    raw[21] = raw[21] & 0xF0 | high
    raw[22:26] = low
    path.write_bytes(raw)


def test_a_header_that_cannot_be_believed_is_a_failure_of_its_file_alone(data, tmp_path):
    with_length(data / "dev" / "piped.flac", 0, bytes(4))
    with_length(data / "dev" / "lying.flac", 2, bytes(4))  # 2^33 samples
    done = extract(data, "dev", tmp_path / "s")
    assert (done.status, done.counts()) == (1, (3, 0, 0, 2))
    assert "does not say how long it is" in done.err
    assert done.split["bytes"] < 500_000


def test_features_that_cannot_be_stored_are_not_encoded_again_and_again(data, tmp_path, monkeypatch):
    import encodeonce.extract.encoders.fbank as fbank

    monkeypatch.setitem(
        fbank.OPTIONS, "use_log_fbank", False
    )  # power: loud audio is beyond float16, the faint one is not
    soundfile.write(data / "dev" / "faint.wav", speech(0.5, 3) * 1e-5, RATE, subtype="FLOAT")
    assert extract(data, "dev", tmp_path / "s").counts() == (1, 0, 0, 3)
    before = sorted(path.name for path in split_folder(tmp_path / "s", "dev").rglob("*"))
    monkeypatch.setattr(fbank.Fbank, "load", None)
    assert extract(data, "dev", tmp_path / "s").counts() == (0, 0, 1, 3)
    assert sorted(path.name for path in split_folder(tmp_path / "s", "dev").rglob("*")) == before


def test_splits_do_not_lie_inside_each_other_or_in_our_own_folders(data, tmp_path):
    write_corpus(data / "dev" / "inner", [0.5])
    write_corpus(data / "dev" / "plans", [0.5])
    extract(data, "dev", tmp_path / "s")
    for name, word in (("dev/inner", "inside each other"), ("dev/plans", "plans")):
        done = extract(data, name, tmp_path / "s")
        assert (done.status, word in done.err) == (2, True), done.err


def test_a_file_name_that_is_no_unicode_costs_itself_alone(data, tmp_path):
    try:
        os.symlink("utt-000.wav", os.fsencode(data / "dev") + b"/bad\xff.wav")
    except OSError:
        pytest.skip("this file system takes Unicode names alone")
    (data / "dev" / "empty.wav").touch()
    for _ in range(2):
        done = extract(data, "dev", tmp_path / "s")
        assert (done.status, done.split["failed"], done.split["utterances"]) == (1, 2, 5)
    assert "UTF-8" in done.err


def test_a_shard_whose_utterances_all_failed_is_settled(data, tmp_path):
    for path in (data / "dev").iterdir():
        path.unlink()
    truncated_flac(data / "dev" / "a.flac")
    assert extract(data, "dev", tmp_path / "s").counts() == (0, 0, 0, 1)
    soundfile.write(data / "dev" / "a.flac", speech(1.2, 5), RATE)
    assert extract(data, "dev", tmp_path / "s").counts() == (1, 0, 0, 0)
    assert len(read_both(split_folder(tmp_path / "s", "dev"), "fbank")) == 1


def test_an_output_for_utterances_that_are_gone_says_the_way_out(data, tmp_path):
    extract(data, "dev", tmp_path / "s")
    (data / "dev" / "utt-001.wav").unlink()
    assert extract(data, "dev", tmp_path / "s").counts() == (0, 0, 2, 0)
    refused = extract(data, "dev", tmp_path / "s", "--dtype", "int8")
    assert (refused.status, "--drop-gone" in refused.err, "utt-001" in refused.err) == (2, True, True)
    split = split_folder(tmp_path / "s", "dev")
    assert len(read_both(split, "fbank")) == 3
    assert extract(data, "dev", tmp_path / "s", "--dtype", "int8", "--drop-gone").status == 0
    assert len(read_both(split, "fbank")) == len(read_both(split, "fbank-int8")) == 2
    assert feature_store("verify", tmp_path / "s", "--read-data").status == 0


def test_a_replacement_and_a_new_output_in_one_run(data, tmp_path):
    extract(data, "dev", tmp_path / "s")
    soundfile.write(data / "dev" / "utt-001.wav", speech(0.9, 77), RATE)
    done = extract(data, "dev", tmp_path / "s", "--dtype", "int8", "--replace")
    assert (done.status, done.split["failed"]) == (0, 0), done.err
    split = split_folder(tmp_path / "s", "dev")
    assert len(read_both(split, "fbank")) == len(read_both(split, "fbank-int8")) == 3
    assert extract(data, "dev", tmp_path / "s", "--dtype", "int8").counts() == (0, 0, 3, 0)


DAMAGED_FILES = {
    "commits/0.json": b"[]",
    "plans/0.parquet": None,
    "plans/x.parquet": b"",
    "failures.jsonl": b"bla",
    "features.zarr/zarr.json": None,
    "features.zarr/fbank/c/0/0": None,
    "../feature-set.json": b"[]",
    "utterances.parquet": b"PAR1",
}


@pytest.mark.parametrize("name", DAMAGED_FILES)
def test_a_store_whose_own_files_are_damaged_is_refused_with_the_file_named(data, tmp_path, name):
    extract(data, "dev", tmp_path / "s")
    path = split_folder(tmp_path / "s", "dev") / name
    if DAMAGED_FILES[name] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGED_FILES[name] or b"")
    done = extract(data, "dev", tmp_path / "s")
    assert (done.status, "Traceback" in done.err) == (2, False), done.err
    assert Path(name).name in done.err
    assert "Traceback" not in feature_store("verify", tmp_path / "s").err


def test_features_that_float16_cannot_hold_are_a_failure_and_not_infinity(data, tmp_path, monkeypatch):
    import encodeonce.extract.encoders.fbank as fbank

    monkeypatch.setitem(fbank.OPTIONS, "use_log_fbank", False)  # power, far beyond 65504
    done = extract(data, "dev", tmp_path / "s")
    assert (done.status, done.split["failed"]) == (1, 3)
    assert "do not fit float16" in done.err
    assert extract(data, "dev", tmp_path / "s32", "--dtype", "float32").counts() == (3, 0, 0, 0)


def test_unknown_ids_splits_and_sets_are_named_with_what_there_is(data, tmp_path):
    from encodeonce.store import StoreError

    extract(data, "dev", tmp_path / "s")
    store = FeatureStore(tmp_path / "s", encoder="fbank", split="dev")
    with pytest.raises(KeyError, match="utt-000"):
        store["utt-00"]
    with pytest.raises(StoreError, match="there are fbank"):
        store["utt-000"]["layer-9"]
    with pytest.raises(StoreError, match="there are: dev"):
        FeatureStore(tmp_path / "s", encoder="fbank", split="test")
    with pytest.raises(StoreError, match="fbank-"):
        FeatureStore(tmp_path / "s", encoder="hubert-large", split="dev")
    extract(data, "dev", tmp_path / "s", "--cut-seconds", "20")
    with pytest.raises(StoreError, match="several feature sets"):
        FeatureStore(tmp_path / "s", encoder="fbank", split="dev")
    assert feature_store("ls", tmp_path / "nowhere").status == 2


def test_a_store_inside_a_feature_set_or_split_is_refused(tmp_path):
    write_corpus(tmp_path / "data" / "dev", [0.5])
    extract(tmp_path / "data", "dev", tmp_path / "s")
    split = split_folder(tmp_path / "s", "dev")
    for place, what in ((split.parent, "a feature set"), (split, "a split")):
        done = extract(tmp_path / "data", "dev", place)
        assert done.status == 2
        assert f"is {what}; give the store that holds it" in done.err


def test_a_checkpoint_that_cannot_be_used_leaves_no_feature_set(data, tmp_path):
    folder = tmp_path / "hubert"
    FAMILIES["hubert-base"].model().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    done = extract(data, "dev", tmp_path / "s", encoder=str(folder))
    assert (done.status, len(done.err.splitlines()) > 0) == (2, True)
    assert "Traceback" not in done.err
    assert not list((tmp_path / "s").rglob("*.json"))
    assert feature_store("ls", tmp_path / "s").status == 2


def test_two_names_of_one_option_are_not_both_taken(data, tmp_path):
    done = extract(data, "dev", tmp_path / "s", "--layers", "last", "--outputs", "fbank")
    assert (done.status, "two names of one option" in done.err) == (2, True)
