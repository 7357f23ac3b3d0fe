"""The plan of an epoch: every utterance once, no batch too large, the same for every machine and number of ranks."""

import hashlib

import numpy as np
import pytest
from encodeonce.store.streaming.epoch import Epoch, Step, count_steps, plan_epoch, split_tail, steps
from hypothesis import given, settings
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(1, 60), min_size=0, max_size=120).map(lambda x: np.array(x, np.int32))
OPTIONS = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**63 - 1),
        "epoch": st.integers(0, 1000),
        "frames_per_batch": st.integers(60, 400),
        "window": st.integers(1, 200),
        "max_batch": st.none() | st.integers(1, 10),
        "shuffle": st.booleans(),
        "shard_window": st.integers(1, 4),
    }
)


def plan_slowly(lengths: np.ndarray, plan: Epoch, window: int, most_frames: int, most: int | None) -> list[list[int]]:
    """The batches of one window after the other, cut by the definition; in no particular order of batches."""
    found = []
    everything = np.sort(plan.order)
    assert np.array_equal(everything, np.arange(len(lengths)))
    for first in range(0, len(lengths), window):
        batch: list[int] = []
        for i in plan.order[first : first + window].tolist():
            grown = [*batch, i]
            if batch and (len(grown) * max(lengths[grown]) > most_frames or (most and len(grown) > most)):
                found.append(batch)
                grown = [i]
            batch = grown
        found.append(batch)
    return found


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, options=OPTIONS, shards=st.none() | st.integers(1, 7))
def test_every_utterance_is_in_one_batch_and_no_batch_is_too_large(lengths, options, shards):
    keys = None if shards is None else np.arange(len(lengths)) % shards
    plan = plan_epoch(lengths, **options, shards=keys)
    batches = [plan.batch(k) for k in range(len(plan))]
    assert sorted(i for batch in batches for i in batch.tolist()) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= options["frames_per_batch"]
        assert options["max_batch"] is None or len(batch) <= options["max_batch"]
        assert (np.diff(lengths[batch]) >= 0).all()
    if shards is None or not options["shuffle"]:
        slow = plan_slowly(lengths, plan, options["window"], options["frames_per_batch"], options["max_batch"])
        assert sorted(map(list, batches)) == sorted(slow)
    again = plan_epoch(lengths, **options, shards=keys)
    assert all(np.array_equal(a, b) for a, b in zip(batches, map(again.batch, range(len(again))), strict=True))


def test_shard_windows_are_read_one_after_the_other():
    rng = np.random.default_rng(0)
    lengths, shards = rng.integers(10, 60, 4000).astype(np.int32), rng.integers(0, 40, 4000)
    plan = plan_epoch(lengths, seed=1, epoch=0, frames_per_batch=600, shards=shards, shard_window=5)
    windows = [set(shards[plan.batch(k)]) for k in range(len(plan) - 1)]  # the last batch may be one moved to the end
    distinct: list[set[int]] = []
    for window in windows:
        if not distinct or not window & distinct[-1]:
            distinct.append(set())
        distinct[-1] |= window
    assert len(distinct) == 8
    assert all(len(window) == 5 for window in distinct)


def test_the_plan_is_the_same_for_all_time():
    lengths = (np.arange(5000) * 7919 % 1500 + 50).astype(np.int32)
    plan = plan_epoch(lengths, seed=7, epoch=3, frames_per_batch=20_000, window=512)
    digest = hashlib.sha256()
    for k in range(len(plan)):
        digest.update(plan.batch(k).astype("<i8").tobytes() + b"|")
    assert digest.hexdigest() == "a788ff758ae8719be5805ff83450eb2a96c98c0c4bac37dcc314b73c99b7b8e5"


def test_seeds_and_epochs_give_other_orders():
    lengths = np.full(1000, 10, np.int32)
    orders = {
        tuple(plan_epoch(lengths, seed=s, epoch=e, frames_per_batch=100).batch(0)) for s in range(5) for e in range(5)
    }
    assert len(orders) == 25
    straight = plan_epoch(lengths, seed=0, epoch=9, frames_per_batch=100, shuffle=False)
    assert np.array_equal(straight.order, np.arange(1000))


def test_positions_of_utterances_are_uniform():
    lengths = np.random.default_rng(3).integers(10, 100, 3000).astype(np.int32)
    place = np.zeros(3000)
    for epoch in range(100):
        plan = plan_epoch(lengths, seed=0, epoch=epoch, frames_per_batch=7000, window=500)
        for k in range(len(plan)):
            place[plan.batch(k)] += (k + 0.5) / len(plan)
    assert np.abs(place / 100 - 0.5).max() < 0.17  # six standard deviations of a uniform place's mean


def test_grouping_by_length_leaves_little_padding():
    rng = np.random.default_rng(0)
    lengths = np.clip(
        np.where(rng.random(50_000) < 0.65, rng.normal(730, 65, 50_000), rng.uniform(75, 700, 50_000)), 70, 1750
    )
    lengths = lengths.astype(np.int32)
    plan = plan_epoch(lengths, seed=0, epoch=0, frames_per_batch=40_000)
    padded = sum(len(b) * int(lengths[b].max()) for b in map(plan.batch, range(len(plan))))
    assert plan.padding(lengths) == pytest.approx(1 - lengths.sum(dtype=np.int64) / padded)
    assert plan.padding(lengths) < 0.02


@settings(max_examples=200, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), data=st.data(), drop=st.booleans())
def test_ranks_take_a_prefix_together_in_equal_steps(sizes, data, drop):
    world = data.draw(st.integers(1, 9))
    taken = data.draw(st.integers(0, len(sizes)))
    ranks = [list(steps(np.array(sizes), taken, rank, world, drop)) for rank in range(world)]
    assert {len(found) for found in ranks} == {count_steps(len(sizes) - taken, world, drop)}
    seen: list[tuple[int, int]] = []
    for together in zip(*ranks, strict=True):
        assert len({step.consumed for step in together}) == 1
        seen += [(s.batch, u) for s in together for u in range(s.first, sizes[s.batch] if s.last is None else s.last)]
        assert all(s.last is None or s.last > s.first for s in together)
        if not drop:
            assert set(seen) == {(b, u) for b in range(taken, together[0].consumed) for u in range(sizes[b])}
    if not drop and sum(sizes[taken:][-((len(sizes) - taken) % world) :]) >= world:
        assert len(seen) == len(set(seen))
    if ranks[0]:
        assert ranks[0][-1].consumed == len(sizes)


def test_a_tail_is_split_as_evenly_as_can_be():
    assert split_tail([9, 2], 4) == [(0, 0, 3), (0, 3, 6), (0, 6, 9), (1, 0, 2)]
    assert split_tail([1], 3) == [(0, 0, 1)] * 3
    assert list(steps(np.array([4]), 0, 1, 2)) == [Step(0, 2, 4, 1)]


def test_the_last_batch_can_be_split_over_many_ranks():
    lengths = np.concatenate([np.full(640, 5), np.full(50, 500)]).astype(np.int32)
    for epoch in range(20):
        plan = plan_epoch(lengths, seed=0, epoch=epoch, frames_per_batch=500)
        assert len(plan.batch(len(plan) - 1)) >= 64
