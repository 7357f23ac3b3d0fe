"""One writer at a time in an object store: a lease that is renewed, runs out, and is taken over by one alone."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from commands import extract, write_corpus
from encodeonce.store import lease as lease_module
from encodeonce.store import writer as writer_module
from encodeonce.store.errors import StoreError
from encodeonce.store.layout import SplitAttributes
from encodeonce.store.lease import HOLD_SECONDS, RENEW_SECONDS, TAKE_SECONDS, Lease, LeaseLostError, machine
from encodeonce.store.objects import ObjectPath
from encodeonce.store.writer import Commit, SplitWriter


@pytest.fixture(params=["bucket", "memory"])
def place(request: pytest.FixtureRequest) -> ObjectPath:
    """Where a lease lies."""
    return request.getfixturevalue(request.param) / "dev" / ".writer"


def left_behind(place: ObjectPath, age: float, machine: str = "another", process: int = 1) -> None:
    """The lease of somebody who renewed it so many seconds ago."""
    renewed = datetime.now(UTC) - timedelta(seconds=age)
    holder = {"holder": "x", "process": process, "host": "far", "machine": machine, "renewed": renewed.isoformat()}
    place.put(json.dumps(holder).encode())


def test_a_second_writer_is_refused_and_told_who_the_first_is(place):
    with Lease(place) as lease:
        lease.check()
        with pytest.raises(StoreError, match="is being written by process"), Lease(place):
            pass
    assert not place.exists()
    with Lease(place):
        pass


def test_a_lease_is_renewed(place, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.02)
    with Lease(place) as lease:
        counts = []
        for _ in range(3):
            time.sleep(0.15)
            counts.append(json.loads(place.read_bytes())["count"])
        lease.check()
    assert 1 < counts[0] < counts[1] < counts[2]
    assert RENEW_SECONDS * 3 < HOLD_SECONDS < TAKE_SECONDS


def test_what_was_not_renewed_for_long_is_taken_over_by_one(place):
    left_behind(place, TAKE_SECONDS - 5)
    with pytest.raises(StoreError, match="by process 1 on far, heard of 175 s ago"), Lease(place):
        pass
    left_behind(place, TAKE_SECONDS + 1)
    won, refused, ready = [], [], threading.Barrier(8)

    def take() -> None:
        lease = Lease(place)
        ready.wait()
        try:
            lease.__enter__()
            won.append(lease)
        except StoreError:
            refused.append(lease)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 7)
    won[0].check()
    won[0].__exit__(None, None, None)
    assert not place.exists()


def test_a_killed_process_of_this_machine_is_not_waited_for(place):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left_behind(place, 1, machine(), int(done.stdout))
    with Lease(place) as lease:
        lease.check()
        assert json.loads(place.read_bytes())["process"] == os.getpid()
    assert not place.exists()


def test_whoever_waits_gets_it_next(place):
    first = Lease(place)
    first.__enter__()
    threading.Timer(0.3, first.__exit__, (None, None, None)).start()
    with Lease(place, wait=True) as second:
        second.check()


def test_a_holder_that_was_taken_over_stops_and_leaves_the_new_one_alone(place, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.05)
    with Lease(place) as lease:
        left_behind(place, 0)
        time.sleep(0.4)
        with pytest.raises(LeaseLostError, match="not ours to write any more"):
            lease.check()
    assert json.loads(place.read_bytes())["holder"] == "x"


def test_a_holder_that_could_not_renew_counts_itself_out(place, monkeypatch):
    with Lease(place) as lease:
        monkeypatch.setattr(lease_module, "HOLD_SECONDS", 0.05)
        time.sleep(0.1)
        with pytest.raises(LeaseLostError):
            lease.check()


def test_a_writer_that_lost_its_lease_commits_nothing_more(memory, monkeypatch):
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.05)
    attributes = SplitAttributes("0" * 64, "toy", "dev", 16_000, 320, 64)
    with SplitWriter(memory / "dev", attributes) as writer:
        writer.write_commit(Commit(0, 0, 0, 0, [], {}))
        left_behind(memory / "dev" / ".writer", 0)
        time.sleep(0.4)
        with pytest.raises(LeaseLostError):
            writer.write_commit(Commit(1, 0, 0, 0, [], {}))
    assert [path.name for path in (memory / "dev" / "commits").iterdir()] == ["0.json"]


@pytest.mark.parametrize(("first", "said"), [(ValueError("the first"), "the first"), (None, "cannot be reached")])
def test_a_writer_that_cannot_clean_up_lets_go_and_says_what_went_wrong_first(memory, monkeypatch, first, said):
    def unreachable(folder: ObjectPath) -> None:
        raise StoreError(f"{folder} cannot be written: the server cannot be reached")

    writer = SplitWriter(memory / "dev", SplitAttributes("0" * 64, "toy", "dev", 16_000, 320, 64))

    def write() -> None:
        with writer:
            monkeypatch.setattr(writer_module, "remove_tree", unreachable)
            if first:
                raise first

    with pytest.raises((ValueError, StoreError), match=said):
        write()
    assert not (memory / "dev" / ".writer").exists()


def test_a_command_says_who_writes_there(bucket, tmp_path: Path):
    write_corpus(tmp_path / "data" / "dev", [0.5])
    assert extract(tmp_path / "data", "dev", bucket).status == 0
    (found,) = bucket.glob("*/feature-set.json")
    with Lease(found.parent / "dev" / ".writer"):
        done = extract(tmp_path / "data", "dev", bucket)
    assert (done.status, "is being written by process" in done.err) == (2, True)
    assert "Traceback" not in done.err
