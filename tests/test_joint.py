"""Several processes write one split together, without a scheduler: what comes out is what one process makes."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import contents
from encodeonce.store import lease as lease_module
from encodeonce.store.drop import drop_outputs
from encodeonce.store.errors import StoreError
from encodeonce.store.health import verify_split
from encodeonce.store.hold import Member
from encodeonce.store.layout import FeatureSet
from encodeonce.store.locks import lock
from encodeonce.store.objects import ObjectPath, StorePath
from encodeonce.store.plan import Place
from encodeonce.store.reader import FeatureStore
from encodeonce.store.writer import SplitWriter
from joint_split import (
    ATTRIBUTES,
    FRAMES,
    IDENTITY,
    LAYER,
    OUTPUTS,
    WORLD,
    fill,
    items_of,
    joint,
    make,
    planned,
    run_member,
    single,
)
from plain_readers import read_both


@contextmanager
def processes(*arguments: tuple[Any, ...]) -> Iterator[Sequence[BaseProcess]]:
    """Members that start at once, one a process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["joint_split"])
    barrier = context.Barrier(len(arguments))
    started = [context.Process(target=run_member, args=(*some[:2], barrier, *some[2:])) for some in arguments]
    for process in started:
        process.start()
    try:
        yield started
    finally:
        for process in started:
            process.join(60)
            process.kill()


def hidden(split: Path) -> list[str]:
    return sorted(path.name for path in split.iterdir() if path.name.startswith("."))


def test_members_that_start_at_once_make_what_one_process_makes(tmp_path):
    single(tmp_path / "single")
    with processes(*((tmp_path / "joint", rank) for rank in range(WORLD))) as members:
        pass
    assert [member.exitcode for member in members] == [0, 0, 0]
    assert contents(tmp_path / "joint") == contents(tmp_path / "single")
    assert hidden(tmp_path / "joint") == []
    assert len(read_both(tmp_path / "joint", "layer-int8")) == len(FRAMES)


def test_a_killed_member_is_started_again_while_the_others_write(tmp_path):
    single(tmp_path / "single")
    with processes((tmp_path / "joint", 0), (tmp_path / "joint", 1, None, 2), (tmp_path / "joint", 2)) as members:
        members[1].join(60)
        assert members[1].exitcode == -signal.SIGKILL
        with processes((tmp_path / "joint", 1)) as again:
            pass
    assert [member.exitcode for member in [*members, *again]] == [0, -signal.SIGKILL, 0, 0]
    assert contents(tmp_path / "joint") == contents(tmp_path / "single")


def test_outputs_and_utterances_that_join_and_replace_come_out_the_same(tmp_path):
    changed = {**FRAMES, "utt-03": 99, "utt-10": 100, "utt-17": 101, "new": 200}
    steps = [(FRAMES, LAYER), (changed, OUTPUTS)]
    single(tmp_path / "single", *steps)
    with processes(*((tmp_path / "joint", rank, steps) for rank in range(WORLD))) as members:
        pass
    assert [member.exitcode for member in members] == [0, 0, 0]
    assert contents(tmp_path / "joint").keys() == contents(tmp_path / "single").keys()
    assert contents(tmp_path / "joint") == contents(tmp_path / "single")


@pytest.fixture(params=["local", "memory", "bucket"])
def split(request: pytest.FixtureRequest, tmp_path: Path) -> StorePath:
    """Where a split may lie."""
    if request.param == "local":
        return tmp_path / "dev"
    return request.getfixturevalue(request.param) / "dev"


def test_who_may_write_together_and_who_not(split):
    with joint(split, 0), joint(split, 2):
        with pytest.raises(StoreError, match=r"by process \d+ on \S+ as rank 2 of 3.* already; give every process a"):
            joint(split, 2).__enter__()
        with pytest.raises(
            StoreError, match=r"as rank . of 3.*, and this would be rank 1 of 4: .* the same world size"
        ):
            joint(split, 1, 4).__enter__()
        with pytest.raises(StoreError, match=r"by process \d+ on \S+ as rank . of 3"):
            SplitWriter(split, ATTRIBUTES).__enter__()
        with joint(split, 1):
            pass
    with SplitWriter(split, ATTRIBUTES), pytest.raises(StoreError, match=rf"by process {os.getpid()} on"):
        joint(split, 0).__enter__()
    with joint(split, 3, 4):
        pass
    with SplitWriter(split, ATTRIBUTES):
        pass
    with pytest.raises(StoreError, match="ranks go from 0"):
        Member(3, 3)


def test_of_an_exclusive_writer_and_members_never_both_get_in(tmp_path):
    inside: list[str] = []
    overlapped, ends = [], time.monotonic() + 2

    def come_and_go(name: str, member: Member | None) -> None:
        while time.monotonic() < ends:
            try:
                with SplitWriter(tmp_path / "dev", ATTRIBUTES, member=member):
                    inside.append(name)
                    overlapped.append(set(inside))
                    inside.remove(name)
            except StoreError:
                continue

    names = {"exclusive": None, "0 of 2": Member(0, 2), "1 of 2": Member(1, 2), "0 of 3": Member(0, 3)}
    threads = [threading.Thread(target=come_and_go, args=pair) for pair in names.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    met = {frozenset(some) for some in overlapped}
    assert met <= {*(frozenset({name}) for name in names), frozenset({"0 of 2", "1 of 2"})}
    assert {name for some in met for name in some} == names.keys()


def left_behind(split: StorePath) -> None:
    """Locks of processes that were killed: an exclusive one, two members, one inside `alone`."""
    for name in (".writer", ".writer-0-of-2", ".writer-1-of-3", ".lock"):
        if isinstance(split, Path):
            split.mkdir(parents=True, exist_ok=True)
            (split / name).write_text("process 1 on elsewhere as rank 1 of 3\n")
        else:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ObjectPath, "unlink", lambda *_: None)
                patch.setattr(lease_module, "machine", lambda: "another")
                with lock(split / name):
                    patch.setattr(lease_module, "RENEW_SECONDS", 1000)


def test_what_dead_holders_left_stops_nobody(split, monkeypatch):
    left_behind(split)
    assert (split / ".writer-1-of-3").exists()
    if isinstance(split, ObjectPath):
        monkeypatch.setattr(lease_module, "TAKE_SECONDS", -1.0)
        time.sleep(0.01)
    with joint(split, 1), joint(split, 2):
        pass
    with SplitWriter(split, ATTRIBUTES):
        pass
    assert [path.name for path in split.iterdir() if path.name.startswith(".")] == []


def test_a_member_writes_what_is_shared_only_alone_and_shards_only_its_own(tmp_path):
    with joint(tmp_path / "dev", 0) as writer, joint(tmp_path / "dev", 1) as other:
        for unsafe in (
            lambda: writer.begin(256),
            lambda: writer.append_plan([("a", 320, 1)], {}),
            lambda: writer.set_table(writer.table),
            lambda: writer.remove(0, {"a"}),
            lambda: writer.drop({"layer"}),
        ):
            with pytest.raises(RuntimeError, match="member of a joint writing"):
                unsafe()
        planned(writer, FRAMES)
        with other.alone():
            assert [plan.number for plan in other.plans] == [0]
            assert not other.last
        with pytest.raises(RuntimeError, match="shard 1 by a member"):
            make(writer, 1)
        assert not list((tmp_path / "dev").glob("features.zarr/*/c/1"))


def test_a_member_that_joins_sweeps_its_own_and_the_first_one_sweeps_for_all(tmp_path):
    split = tmp_path / "dev"

    files = [split / f"features.zarr/layer/c/{shard}/0" for shard in (0, 1, 3)] + [split / ".tmp-0-of-3" / "some.tmp"]
    with joint(split, 0) as writer:
        planned(writer, FRAMES)
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"begun")
        with joint(split, 1):
            assert [path.exists() for path in files] == [True, False, True, True]
        for path in files:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"begun")
    assert not files[-1].exists()
    with joint(split, 2):
        assert [path.exists() for path in files] == [False] * 4


def test_members_are_alone_one_after_the_other(split):
    seen: list[str] = []

    def inside(writer: SplitWriter, seconds: float) -> None:
        with writer.alone():
            seen.append("in")
            time.sleep(seconds)
            with writer.alone():  # already
                seen.append("out")

    with joint(split, 0) as zero, joint(split, 1) as one:
        threads = [threading.Thread(target=inside, args=(writer, 0.2)) for writer in (zero, one, zero)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == ["in", "out"] * 3


def feature_set(split: Path) -> FeatureSet:
    listed = FeatureSet(split.parent, "toy", IDENTITY, OUTPUTS, {"written_by": "FeatureWriter"})
    listed.write(split.parent / ".tmp")
    return listed


def test_readers_and_verify_cope_with_shards_in_the_middle_that_are_not_made_yet(tmp_path):
    split = tmp_path / "dev"
    listed = feature_set(split)
    with joint(split, 0) as zero, joint(split, 2) as two:
        planned(zero, FRAMES)
        planned(two, FRAMES)
        for shard in (2, 5):
            make(two, shard)
        make(zero, 3)
        two.publish(OUTPUTS)
        assert FeatureStore(split).table["shard"].unique().to_pylist() == [2, 5]  # 3 is left to its living owner
        zero.publish(OUTPUTS)
        store = FeatureStore(split)
        assert store.table["shard"].unique().to_pylist() == [2, 3, 5]
        assert read_both(split, "layer").keys() == set(store.ids)
        for row in store.table.to_pylist():
            (item,) = items_of([Place(row["id"], row["shard"], row["row"], row["frames"], 0)], LAYER)[0]["layer"]
            assert np.array_equal(store[row["id"]].features, item.values)
        assert verify_split(listed, split, read_data=1.0).findings == []
        make(two, 8)
        assert verify_split(listed, split).findings == []  # committed, and not shown yet
        before = store.table.num_rows
        zero.publish(OUTPUTS)
        assert FeatureStore(split).table.num_rows == before
    with joint(split, 1) as one:
        one.publish(OUTPUTS)  # the owner of 8 lives no more
        assert 8 in FeatureStore(split).table["shard"].to_pylist()


def test_what_another_member_replaced_and_did_not_show_yet_stays_where_readers_see_it(tmp_path):
    split, changed = tmp_path / "dev", {**FRAMES, "utt-03": 99}
    single(split)
    new = len(list((split / "commits").iterdir()))
    with joint(split, 0, 2) as zero, joint(split, 1, 2) as one:
        planned(zero, changed)
        with one.alone():
            pass
        maker, other = (zero, one) if zero.owns(new) else (one, zero)
        make(maker, new)
        other.publish(OUTPUTS)
        assert FeatureStore(split)["utt-03"].features.shape == (FRAMES["utt-03"], 32)
        assert other.superseded() == {}
        maker.publish(OUTPUTS)
        assert FeatureStore(split)["utt-03"].features.shape == (99, 32)
        assert list(maker.superseded().values()) == [{"utt-03"}]


def test_an_output_moves_into_the_group_only_when_nobody_may_be_writing_it(tmp_path):
    split, more = tmp_path / "dev", {**FRAMES, "new-1": 230, "new-2": 240}
    single(split, (FRAMES, LAYER))
    first_new = len(list((split / "commits").iterdir()))
    with joint(split, 0, 2) as zero, joint(split, 1, 2) as one:
        planned(zero, more, OUTPUTS)
        with one.alone():
            pass
        mine, yours = (first_new, first_new + 1) if zero.owns(first_new) else (first_new + 1, first_new)
        for shard in range(first_new):
            make(zero if zero.owns(shard) else one, shard)
        make(zero, mine)
        zero.publish(OUTPUTS)  # every committed shard has layer-int8, and rank 1 is about to write one more
        assert (split / "unfinished" / "layer-int8").is_dir()
        assert {*FeatureStore(split).outputs} == {"layer"}
        make(one, yours)
        one.publish(OUTPUTS)
        assert {*FeatureStore(split).outputs} == OUTPUTS.keys()
        zero.publish(OUTPUTS)
        assert zero.outputs == OUTPUTS
    single(tmp_path / "single" / "dev", (FRAMES, LAYER), (more, OUTPUTS))
    assert contents(split) == contents(tmp_path / "single" / "dev")
    with SplitWriter(split, ATTRIBUTES):
        assert not (split / "unfinished").exists()


def test_commands_that_take_the_whole_split_are_refused_while_members_write(tmp_path):
    split = tmp_path / "dev"
    listed = feature_set(split)
    single(split)
    with joint(split, 1), pytest.raises(StoreError, match="as rank 1 of 3"):
        drop_outputs(split, {"layer"})
    assert verify_split(listed, split).findings == []


def test_members_in_an_object_store_make_what_one_process_makes(bucket):
    single(bucket / "single")
    failed = []

    def run(rank: int) -> None:
        try:
            with joint(bucket / "joint", rank) as writer:
                fill(writer)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(WORLD)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed

    def objects(place: ObjectPath) -> dict[str, bytes]:
        found = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.sizes_below()}
        return {name: data for name, data in found.items() if not name.startswith("commits/")}

    assert objects(bucket / "joint") == objects(bucket / "single")
