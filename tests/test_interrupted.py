"""Killed anywhere and run again, a run makes byte for byte what an uninterrupted one makes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
from commands import RATE, contents, extract, speech, split_folder, write_corpus
from plain_readers import read_both

LENGTHS = [0.4, 1.3, 0.7, 2.0, 0.55, 1.0, 0.8, 1.6]

# Runs the command again and again, each time in a child that kills itself at one of its file operations; prints how each
# child ended. torch is imported once, before any child.
DRIVER = """
import os, signal, sys, torch, torchaudio.compliance.kaldi
import encodeonce.extract.dryrun, encodeonce.extract.encode, encodeonce.extract.encoders.fbank, encodeonce.extract.pipeline
from encodeonce.extract.cli import main

def run_child(kill_at, before):
    count = 0
    def counting(work):
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            if count == kill_at and before: os.kill(os.getpid(), signal.SIGKILL)
            result = work(*arguments, **options)
            if count == kill_at: os.kill(os.getpid(), signal.SIGKILL)
            return result
        return operation
    os.replace, os.fsync = counting(os.replace), counting(os.fsync)
    main(sys.argv[2:])

for point in map(int, sys.argv[1].split(",")):
    child = os.fork()
    if not child:
        try: run_child(abs(point), point < 0)
        except SystemExit as end: os._exit(end.code or 0)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def killed_runs(points: list[int], data: Path, store: Path, *options: str) -> list[int]:
    """Runs that are killed at the given file operations (before them where negative); the wait status of each."""
    where = ["--data", str(data), "--split", "dev", "--store", str(store), "--shard-frames", "256"]
    command = [sys.executable, "-c", DRIVER, ",".join(map(str, points)), "--encoder", "fbank", *where, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.splitlines() if line.isdigit()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "data" / "dev", LENGTHS)
    (tmp_path / "data" / "dev" / "broken.wav").write_bytes(b"no audio")
    return tmp_path / "data"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_interrupted_run_equals_uninterrupted_run(data, tmp_path, dtype, monkeypatch):
    whole = extract(data, "dev", tmp_path / "whole", "--shard-frames", "256", "--dtype", dtype)
    assert whole.counts() == (8, 0, 0, 1)
    monkeypatch.setenv("ENCODEONCE_CACHE", str(tmp_path / "another-cache"))
    points = [1, 2, -2, 3, -3, 4, -4, 5, -5, 6, -7, 8, 9, -11, 12, -14, 15, 17, -18, 20, 3, 5, 8]
    ends = killed_runs(points, data, tmp_path / "cut", "--dtype", dtype)
    assert ends.count(signal.SIGKILL) >= 10
    last = extract(data, "dev", tmp_path / "cut", "--shard-frames", "256", "--dtype", dtype)
    assert last.status == 1
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_finished_shards_are_kept_and_new_files_change_nothing(data, tmp_path, monkeypatch):
    whole = extract(data, "dev", tmp_path / "whole", "--shard-frames", "256")
    killed_runs([38], data, tmp_path / "cut")
    split = split_folder(tmp_path / "cut", "dev")
    committed = {path.stem for path in (split / "commits").glob("*.json")}
    finished = {f"commits/{shard}.json" for shard in committed} | {
        f"features.zarr/fbank/c/{shard}/0" for shard in committed
    }
    before = {name: (split / name).stat().st_mtime_ns for name in finished}
    assert len(committed) in range(1, 6)
    write_corpus(data / "dev", [0.5, 0.6], first=50)
    done = extract(data, "dev", tmp_path / "cut")
    assert done.split["reused"] > 0
    assert done.split["encoded"] + done.split["reused"] == 10
    assert {name: (split / name).stat().st_mtime_ns for name in finished} == before
    assert extract(data, "dev", tmp_path / "whole").counts() == (2, 0, 8, 1)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert whole.counts() == (8, 0, 0, 1)


def test_a_killed_replacement_equals_an_uninterrupted_one(data, tmp_path):
    for store in ("whole", "cut"):
        extract(data, "dev", tmp_path / store, "--shard-frames", "256")
    for number, seconds in ((1, 1.1), (4, 0.9), (6, 0.4)):
        soundfile.write(data / "dev" / f"utt-{number:03d}.wav", speech(seconds, 99), RATE)
    assert extract(data, "dev", tmp_path / "whole", "--replace").counts() == (3, 0, 5, 1)
    ends = killed_runs([*range(2, 40, 3)], data, tmp_path / "cut", "--replace")
    assert signal.SIGKILL in ends
    assert extract(data, "dev", tmp_path / "cut", "--replace").status == 1
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(read_both(split_folder(tmp_path / "cut", "dev"), "fbank")) == 8


def test_another_output_after_a_kill_is_added_to_every_shard(data, tmp_path):
    extract(data, "dev", tmp_path / "whole", "--shard-frames", "256")
    extract(data, "dev", tmp_path / "whole", "--shard-frames", "256", "--dtype", "int8")
    killed_runs([22, -26], data, tmp_path / "cut")
    killed_runs([9, 15, -20, 24], data, tmp_path / "cut", "--dtype", "int8")
    assert extract(data, "dev", tmp_path / "cut", "--dtype", "int8").split["failed"] == 1
    whole, cut = (split_folder(tmp_path / store, "dev") for store in ("whole", "cut"))
    for output in ("fbank", "fbank-int8"):
        ours, theirs = read_both(cut, output), read_both(whole, output)
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)
    assert contents(cut) == contents(whole)


def test_an_interrupt_ends_with_130_and_keeps_what_is_finished(data, tmp_path):
    (data / "dev" / "broken.wav").unlink()
    program = (
        "import os, signal, sys\n"
        "from encodeonce.extract.cli import main\n"
        "from encodeonce.store.writer import SplitWriter\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which a shell in the background takes away
        "count = SplitWriter.count\n"
        "def interrupted(self, *rest):\n"
        "    count(self, *rest)\n"
        "    if len(self.commits) == 2: os.kill(os.getpid(), signal.SIGINT)\n"
        "SplitWriter.count = interrupted\n"
        "main(sys.argv[1:])\n"
    )
    where = ["--data", str(data), "--split", "dev", "--store", str(tmp_path / "s"), "--shard-frames", "256"]
    command = [sys.executable, "-c", program, "--encoder", "fbank", *where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ})
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "interrupted" in done.stderr
    split = split_folder(tmp_path / "s", "dev")
    commits = [json.loads(path.read_text()) for path in (split / "commits").iterdir()]
    kept = sum(commit["utterances"] for commit in commits)
    assert len(commits) >= 2
    again = extract(data, "dev", tmp_path / "s")
    assert again.counts() == (8 - kept, 0, kept, 0)
