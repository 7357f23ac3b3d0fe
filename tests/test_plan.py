"""Plans: every utterance has a place of its own before anything is encoded."""

from pathlib import Path

import pytest
from encodeonce.store.format import ROW_ALIGNMENT
from encodeonce.store.plan import Plan, aligned, deal, read_plans, shard_frames_for, write_plan
from hypothesis import given, settings
from hypothesis import strategies as st

UTTERANCES = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(1, 300), max_size=40)


@settings(deadline=None)
@given(UTTERANCES, st.integers(5, 20), st.integers(0, 9), st.integers(0, 5))
def test_every_utterance_has_a_place_that_no_other_overlaps(lengths, chunks, first_shard, number):
    shard_frames = chunks * ROW_ALIGNMENT
    places = deal([(name, frames * 320, frames) for name, frames in lengths.items()], shard_frames, first_shard, number)
    assert sorted(place.id for place in places) == sorted(lengths)
    taken = set()
    for place in places:
        assert place.frames == lengths[place.id]
        assert place.shard >= first_shard
        assert place.row % ROW_ALIGNMENT == 0
        assert place.row // shard_frames == (place.row + place.frames - 1) // shard_frames == place.shard
        rows = set(range(place.row, place.row + aligned(place.frames)))
        assert not rows & taken
        taken |= rows


@given(UTTERANCES, st.randoms(use_true_random=False))
def test_a_plan_does_not_depend_on_the_order_of_the_corpus(lengths, random):
    utterances = [(name, frames * 320, frames) for name, frames in lengths.items()]
    shuffled = list(utterances)
    random.shuffle(shuffled)
    assert deal(utterances, 640, 0, 0) == deal(shuffled, 640, 0, 0)


def test_shards_are_a_fair_sample():
    utterances = [(f"{i:04d}", 320 * 10, 10) for i in range(1000)]
    first = [int(place.id) for place in deal(utterances, 64 * 100, 0, 0) if place.shard == 0]
    assert len(first) == 100
    assert 350 < sum(first) / len(first) < 650


def test_an_utterance_longer_than_a_shard_is_refused():
    with pytest.raises(ValueError, match="700 frames"):
        deal([("long", 700 * 320, 700)], 640, 0, 0)


def test_shards_have_about_128_mb_and_less_where_there_is_less():
    assert shard_frames_for(2048, [1000] * 1000, 30_000) == 65536  # DESIGN: 65,536 frames at 1,024 float16
    assert shard_frames_for(2048, [1000] * 3, 1500) == 3 * 1024
    assert shard_frames_for(2048, [100], 30_000) == aligned(30_000)
    assert shard_frames_for(2048, [100_000], 30_000) == aligned(100_000)


def test_plans_come_back_as_they_were_kept(tmp_path: Path):
    plans = [
        Plan(i, deal([(f"ü{i}", 3200, 10), ("b", 6400, 20)], 640, i, i), {"dev": 3} if i else {}) for i in range(3)
    ]
    for plan in plans:
        write_plan(tmp_path / "plans", plan, tmp_path / ".tmp")
    assert read_plans(tmp_path / "plans") == plans
