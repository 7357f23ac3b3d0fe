"""The stream: what it gives is what is stored, in one order for all ranks, resumed at the exact batch."""

import gc
import itertools
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from encodeonce.store import Batch, DamagedError, FeatureStore, Output, StoreError
from encodeonce.store import shards as shards_module
from encodeonce.store import split as split_module
from encodeonce.store.objects import StorePath
from encodeonce.store.quantize import quantize, restore
from encodeonce.store.split import Split
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import frames_of, make_store, values_of
from torch.utils.data import DataLoader

LAYER = Output("layer-9", 32, "float16", "hidden_states[9]")
SMALL = Output("layer-9-int8", 32, "int8", "hidden_states[9]")
CODES = Output("codes", 8, "uint16", "codes")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return make_store(tmp_path_factory.mktemp("stream") / "s", frames_of(60), [LAYER, SMALL])


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    half = [-(-frames // 2) for frames in frames_of(60)]  # a codec of half the rate
    return make_store(tmp_path_factory.mktemp("codes") / "s", half, [CODES], encoder="codec", samples_per_frame=640)


def same(one: Batch, other: Batch) -> bool:
    """Bit for bit."""
    return (one.ids, one.columns, one.number, one.epoch) == (
        other.ids,
        other.columns,
        other.number,
        other.epoch,
    ) and all(
        np.array_equal(one[name].values, other[name].values) and np.array_equal(one[name].lengths, other[name].lengths)
        for name in one.outputs
    )


def expected(batch: Batch, i: int, output: Output) -> np.ndarray:
    frames = int(batch[output.name].lengths[i])
    values = values_of(batch.ids[i], frames, output.width, output.dtype)
    return restore(*quantize(values)) if output.dtype == "int8" else values.astype(output.dtype)


def test_every_utterance_comes_once_as_it_is_stored_and_padding_is_zero(store):
    seen = []
    for batch in store.stream(frames_per_batch=900, outputs=["layer-9", "layer-9-int8"], columns=("text", "metadata")):
        seen += batch.ids
        assert batch.features.dtype == torch.float16
        assert batch["layer-9-int8"].values.dtype == torch.float32
        assert batch.features.shape[0] * batch.features.shape[1] <= 900
        for i, name in enumerate(batch.ids):
            frames = int(batch.lengths[i])
            assert batch.text[i] == f"words of {int(name[4:])}"
            assert batch.columns["metadata"][i] == {"take": int(name[4:])}
            for output in (LAYER, SMALL):
                values = batch[output.name].values[i].numpy()
                assert np.array_equal(values[:frames], expected(batch, i, output))
                assert not values[frames:].any()
    assert sorted(seen) == sorted(store.ids)


def test_feature_sets_of_other_rates_are_joined_by_id(store, codes):
    stream = store.stream(frames_per_batch=900, beside={"codes": codes}, crop_frames=60)
    for batch in stream:
        assert batch["codes"].values.dtype == torch.int32
        for i, name in enumerate(batch.ids):
            whole = values_of(name, store[name].frames, 32, "float16").astype("float16")
            frames = int(batch.lengths[i])
            assert frames == min(60, len(whole))
            got = batch.features[i, :frames].numpy()
            (start,) = [k for k in range(len(whole) - frames + 1) if np.array_equal(whole[k : k + frames], got)]
            theirs = values_of(name, codes[name].frames, 8, "uint16")
            count = int(batch["codes"].lengths[i])
            got = batch["codes"].values[i, :count].numpy()
            (first,) = [k for k in range(len(theirs) - count + 1) if np.array_equal(theirs[k : k + count], got)]
            assert abs(first - start / 2) <= 0.5
            assert abs(count - frames / 2) <= 1


def test_crops_lie_elsewhere_in_every_epoch_and_the_same_in_every_run(store):
    stream, again = (store.stream(frames_per_batch=900, crop_frames=15) for _ in range(2))
    first, second = list(stream), list(stream)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    other = list(store.stream(frames_per_batch=900, crop_frames=15, seed=1))
    by_id = [{n: b.features[i].numpy() for b in epoch for i, n in enumerate(b.ids)} for epoch in (first, second, other)]
    for another in by_id[1:]:
        assert sum(not np.array_equal(by_id[0][n], another[n]) for n in store.ids) > 50


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    before=st.sampled_from([1, 2, 3, 4, 8]),
    after=st.sampled_from([1, 2, 4, 8]),
    stop=st.integers(0, 40),
    frames_per_batch=st.integers(200, 1500),
    shuffle=st.sampled_from(["all", "shards", "none"]),
)
def test_resumed_batches_are_those_that_would_have_come(store, seed, before, after, stop, frames_per_batch, shuffle):
    options: dict[str, Any] = {
        "frames_per_batch": frames_per_batch,
        "seed": seed,
        "shuffle": shuffle,
        "shard_window": 2,
        "prefetch": 2,
    }

    def sequence(streams, epochs=2):
        return itertools.chain.from_iterable(zip(*streams, strict=True) for _ in range(epochs))

    # What comes without an interruption, by utterance: (epoch, batch of the global sequence, utterances, values).
    ranks = [store.stream(rank=r, world_size=before, **options) for r in range(before)]
    taken = list(itertools.islice(sequence(ranks), stop))
    states = [stream.state_dict() for stream in ranks]
    assert all(state == states[0] for state in states)

    resumed = [store.stream(rank=r, world_size=after, **options) for r in range(after)]
    for stream in resumed:
        stream.load_state_dict(pickle.loads(pickle.dumps(states[0])))
    rest = list(sequence(resumed))
    alone = store.stream(rank=0, world_size=1, **options)
    whole = [batch for _ in range(5) for batch in alone]

    def utterances(steps):
        return [
            (b.epoch, b.number, name, b.features[i, : b.lengths[i]].numpy().tobytes())
            for step in steps
            for b in (step if isinstance(step, tuple) else (step,))
            for i, name in enumerate(b.ids)
        ]

    def without_repeats(found):
        return list(dict.fromkeys(found))

    got = without_repeats(utterances(taken)) + without_repeats(utterances(rest))
    assert got == utterances(whole)[: len(got)]


def test_all_ranks_make_the_same_number_of_steps_and_len_says_it(store):
    for world in (1, 2, 3, 5, 8):
        streams = [store.stream(frames_per_batch=500, rank=r, world_size=world) for r in range(world)]
        for _ in range(2):
            promised = {len(stream) for stream in streams}
            assert {len(list(stream)) for stream in streams} == promised
            assert len(promised) == 1
        dropping = [store.stream(frames_per_batch=500, rank=r, world_size=world, drop_last=True) for r in range(world)]
        counts = {len(list(stream)) for stream in dropping}
        assert counts == {len(dropping[0].plan(0)) // world}
        assert {stream.epoch for stream in dropping} == {1}


def test_a_loop_that_breaks_goes_on_at_the_next_batch(store):
    stream, whole = store.stream(frames_per_batch=700), list(store.stream(frames_per_batch=700))
    first = []
    for batch in stream:
        first.append(batch)
        if len(first) == 3:
            break
    assert stream.state_dict()["batch"] == 3
    assert all(same(a, b) for a, b in zip([*first, *stream], whole, strict=True))
    assert stream.state_dict()["epoch"] == 1
    assert stream.state_dict()["batch"] == 0


def test_a_state_of_another_plan_is_refused_with_what_differs(store, codes, tmp_path):
    state = store.stream(frames_per_batch=900).state_dict()
    assert all(type(value) is int for name, value in state.items() if name not in ("plan", "shuffle"))
    with pytest.raises(StoreError, match="frames_per_batch: 800 against 900"):
        store.stream(frames_per_batch=800).load_state_dict(state)
    with pytest.raises(StoreError, match="seed: 1 against 0"):
        store.stream(frames_per_batch=900, seed=1).load_state_dict(state)
    with pytest.raises(StoreError, match=r"utterances: \d+ against 60"):
        store.stream(frames_per_batch=900, where="speaker == 'a'").load_state_dict(state)
    renamed = make_store(tmp_path / "renamed", frames_of(60), [LAYER, SMALL], prefix="other")
    computed_otherwise = make_store(tmp_path / "otherwise", frames_of(60), [LAYER, SMALL], encoder="toy-2")
    for other in (renamed, computed_otherwise):
        with pytest.raises(StoreError, match="the utterances of the store, or which outputs"):
            other.stream(frames_per_batch=900).load_state_dict(state)
    with pytest.raises(StoreError, match="which outputs"):
        store.stream(frames_per_batch=900, outputs=["layer-9-int8"]).load_state_dict(state)
    other = make_store(tmp_path / "s", [*frames_of(60)[:-1], 20], [LAYER])
    with pytest.raises(StoreError, match=r"frames: \d+ against \d+"):
        other.stream(frames_per_batch=900).load_state_dict(state)
    for broken in ({**state, "epoch": "x"}, {**state, "batch": 1.5}):
        with pytest.raises(StoreError, match="take whole numbers"):
            store.stream(frames_per_batch=900).load_state_dict(broken)
    with pytest.raises(StoreError, match="no state of a stream"):
        store.stream(frames_per_batch=900).load_state_dict(None)
    with pytest.raises(StoreError, match="lacks plan"):
        store.stream(frames_per_batch=900).load_state_dict({"epoch": 0, "batch": 1})


def test_subsets(store):
    def ids(**options):
        return sorted(n for batch in store.stream(frames_per_batch=900, **options) for n in batch.ids)

    table = store.table.to_pylist()
    a = sorted(row["id"] for row in table if row["speaker"] == "a" and row["duration"] < 2)
    assert ids(where="speaker == 'a' and duration < 2") == a
    assert ids(where=(pc.field("speaker") == "a") & (pc.field("duration") < 2)) == a
    assert ids(where="not (speaker in ('b', 'c') or duration >= 2)") == a
    assert ids(where="1 <= duration < 2 and language is None") == sorted(
        r["id"] for r in table if 1 <= r["duration"] < 2
    )
    assert ids(where="speaker not in ('a', 'c')") == sorted(r["id"] for r in table if r["speaker"] == "b")
    with pytest.raises(StoreError, match="nothing of the 60"):
        ids(where="language not in ('en',)")  # where nothing is known, nothing holds
    assert ids(min_frames=50, max_frames=99) == sorted(r["id"] for r in table if 50 <= r["frames"] <= 99)
    assert all(len(batch) <= 2 for batch in store.stream(frames_per_batch=900, max_batch=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"where": "speaker == 'nobody'"}, "nothing of the 60 utterances .* where=speaker == 'nobody'"),
        ({"where": "age > 3"}, "no column 'age'; there are id, shard"),
        ({"where": "speaker = 'a'"}, "cannot be read"),
        ({"where": "__import__('os')"}, "is no condition"),
        ({"where": "duration < 'long'"}, "does not fit the table"),
        ({"frames_per_batch": 100}, r"\d+ utterances are longer than frames_per_batch=100, up to \d+ frames \('utt-"),
        ({"frames_per_batch": 0}, "frames_per_batch=0: take 1 or more"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 0.5}, "seed=0.5: take a whole number"),
        ({"device": "gpu"}, "device='gpu': torch knows no such device"),
        ({"device": "cuda:77"}, r"device='cuda:77': torch sees \d+ CUDA GPUs"),
        ({"dtype": "flaot16"}, "dtype='flaot16': take a floating one"),
        ({"dtype": "int32"}, "dtype='int32': take a floating one"),
        ({"dtype": "bfloat16", "device": None}, "numpy has no such dtype"),
        ({"where": "speaker in ('ab')"}, r"'ab' is no list of values; write \('ab',\)"),
        ({"where": "duration < " + "9" * 400}, "cannot be read"),
        ({"where": "duration < -'a'"}, "cannot be read"),
        ({"where": "not " * 5000 + "duration < 1"}, "cannot be read"),
        ({"beside": {"x": "path"}}, "give an open FeatureStore"),
        ({"where": "text == None"}, "missing values are found with `is None`"),
        ({"prefetch": 0}, "prefetch=0"),
        ({"rank": 2, "world_size": 2}, "rank=2 of world_size=2"),
        ({"rank": 0}, "give both"),
        ({"shuffle": "yes"}, "take one of auto, all, shards, none"),
        ({"columns": ("texts",)}, "columns='texts': take one of id, shard"),
        ({"outputs": ["layer-8"]}, "no output 'layer-8' .* there are layer-9, layer-9-int8"),
        ({"outputs": ["layer-9", "layer-9"]}, "names two outputs"),
    ],
)
def test_wrong_options_are_refused_in_a_line(store, options, message):
    with pytest.raises(StoreError, match=message):
        store.stream(**{"frames_per_batch": 900, **options})


def test_utterances_that_a_joined_store_lacks(store, tmp_path):
    fewer = make_store(tmp_path / "s", frames_of(60)[:40], [CODES], encoder="codec")
    with pytest.raises(StoreError, match=r"20 of 60 utterances are not in 'codes' .* e\.g\. 'utt-"):
        store.stream(frames_per_batch=900, beside={"codes": fewer})
    stream = store.stream(frames_per_batch=900, beside={"codes": fewer}, missing="drop")
    assert sorted(n for batch in stream for n in batch.ids) == sorted(fewer.ids)
    other = make_store(tmp_path / "other", frames_of(60, seed=9), [CODES], encoder="codec")
    with pytest.raises(StoreError, match="is not the same audio"):
        store.stream(frames_per_batch=900, beside={"codes": other})


def test_kept_batches_keep_their_values_and_dropped_ones_give_their_buffers_back(store):
    stream = store.stream(frames_per_batch=700)
    kept = list(stream)
    copies = [batch.features.clone() for batch in kept]
    for _ in range(3):
        for _batch in stream:
            pass
    assert all(torch.equal(batch.features, copy) for batch, copy in zip(kept, copies, strict=True))
    part = kept[0].features[0, :5]
    value = part.clone()
    del kept, copies, _batch
    gc.collect()
    rings = [source.ring for source in stream._sources]
    free = sum(len(ring._free) for ring in rings)
    assert free > 0
    for _batch in stream:
        pass
    assert torch.equal(part, value)  # a slice holds the buffer
    del _batch
    gc.collect()
    assert sum(len(ring._free) for ring in rings) == free  # nothing had to be allocated


def test_numpy_without_a_device_and_other_dtypes(store, codes):
    (batch, *_) = store.stream(frames_per_batch=900, device=None, beside={"codes": codes})
    assert isinstance(batch.features, np.ndarray)
    assert batch.features.dtype == np.float16
    assert batch["codes"].values.dtype == np.uint16
    (batch, *_) = store.stream(frames_per_batch=900, dtype="bfloat16")
    assert batch.features.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_another_dtype_is_what_torch_makes_of_the_stored_one(store, dtype):
    alone = store.stream(frames_per_batch=1500, outputs=["layer-9", "layer-9-int8"])
    other = store.stream(frames_per_batch=1500, outputs=["layer-9", "layer-9-int8"], dtype=dtype)
    for _ in range(2):  # in fresh buffers, and in those that were used before
        for stored, batch in zip(alone, other, strict=True):
            for name in batch.outputs:
                values = stored[name].values.to(getattr(torch, dtype))
                assert batch[name].values.dtype == values.dtype
                assert torch.equal(batch[name].values, values)


def test_a_batch_is_held_by_whoever_took_it_alone(store):
    batches = iter(store.stream(frames_per_batch=700))
    held = weakref.ref(next(batches))
    assert held() is None
    assert next(batches) is not None


def test_a_dtype_is_for_quantities_and_leaves_codes_alone(store, codes):
    for device, dtype in (("cpu", "bfloat16"), (torch.device("cpu"), torch.float16), (None, "float32")):
        for batch in store.stream(frames_per_batch=900, beside={"codes": codes}, dtype=dtype, device=device):
            for i, name in enumerate(batch.ids):
                count = int(batch["codes"].lengths[i])
                assert np.array_equal(batch["codes"].values[i, :count], values_of(name, count, 8, "uint16"))
        assert str(batch.features.dtype).endswith(str(dtype).removeprefix("torch."))


def test_names_may_be_given_alone_and_numbers_as_numpy_has_them(store):
    stream = store.stream(frames_per_batch=np.int64(900), seed=np.int64(3), outputs="layer-9-int8", columns="speaker")
    batch = next(iter(stream))
    assert list(batch.outputs) == ["layer-9-int8"]
    assert set(batch.columns["speaker"]) == {"a", "b"}
    assert type(stream.state_dict()["seed"]) is int
    with pytest.raises(KeyError, match="no column 'text'"):
        _ = batch.text
    with pytest.raises(KeyError, match="no output 'codes'; there are layer-9-int8"):
        _ = batch["codes"]


def test_one_goes_on_where_a_batch_says_and_not_beyond_the_end(store):
    for world in (1, 4):
        stream = store.stream(frames_per_batch=700, rank=0, world_size=world)
        whole = list(stream)
        for k in (0, 2, len(whole) - 1):
            stream.seek(0, whole[k].place.taken)
            assert [batch.ids for batch in stream][: len(whole) - k - 1] == [b.ids for b in whole[k + 1 :]] or k == len(
                whole
            ) - 1
        assert whole[-1].place.taken == len(stream.plan(0))
        stream.seek(0, whole[-1].place.taken)
        assert (stream.epoch, stream.state_dict()["batch"]) == (1, 0)
        for epoch, batch in ((0, len(stream.plan(0)) + 1), (0, -1), (-1, 0)):
            with pytest.raises(StoreError, match="cannot be taken"):
                stream.seek(epoch, batch)


def test_two_loops_over_one_stream_do_not_share_its_batches(store):
    stream = store.stream(frames_per_batch=700)
    first, second = iter(stream), iter(stream)
    assert next(first).number == 0
    assert next(second).number == 1
    with pytest.raises(StoreError, match="another loop"):
        next(first)
    assert next(second).number == 2


def test_who_goes_on_finds_the_next_epoch_begun_and_gets_the_same_batches(store, monkeypatch):
    plain, stream = (store.stream(frames_per_batch=700, crop_frames=50, prefetch=2) for _ in range(2))
    read: list[tuple[int, int]] = []
    fill = stream._filler.fill
    monkeypatch.setattr(
        stream._filler,
        "fill",
        lambda chosen, crop, place: read.append((place.epoch, place.number)) or fill(chosen, crop, place),
    )
    for epoch in range(3):
        whole = list(plain)
        for number, batch in enumerate(stream.batches(go_on=True)):
            assert same(batch, whole[number])
            assert stream.state_dict()["epoch"] == epoch + (number == len(whole) - 1)
            time.sleep(0.02)  # a step of training
        assert {place for place in read if place[0] == epoch + 1} <= {(epoch + 1, k) for k in range(3)}
        assert (epoch + 1, 0) in read, "the next epoch had not begun"
    assert sorted(set(read)) == sorted(read), "a batch was read twice"
    stream.seek(1)
    assert [batch.ids for batch in stream.batches(go_on=True)] == [batch.ids for batch in at_epoch(store, 1)]


def test_what_is_to_be_made_of_a_batch_is_made_by_the_threads_that_read(store):
    def make(batch: Batch) -> tuple[list[str], str]:
        return batch.ids, threading.current_thread().name

    plain, stream = (store.stream(frames_per_batch=700, crop_frames=50) for _ in range(2))
    for _ in range(3):  # the second and third epoch are begun while the one before lasts
        made = list(stream.batches(go_on=True, then=make))
        assert [ids for ids, _ in made] == [batch.ids for batch in plain]
        assert all(thread.startswith("read") for _, thread in made)


def test_a_batch_nothing_can_be_made_of_is_an_error_where_it_is_taken(store):
    def refuse(batch: Batch) -> None:
        raise ValueError("of this nothing can be made")

    with pytest.raises(ValueError, match="nothing can be made"):
        next(store.stream(frames_per_batch=700).batches(then=refuse))


def test_nothing_goes_on_for_who_stops_or_did_not_ask(store):
    before = threading.active_count()
    stream = store.stream(frames_per_batch=700)
    steps = len(stream)
    for number, _ in enumerate(stream.batches(go_on=True), 1):
        time.sleep(0.01)
        if number == steps - 1:
            break
    for _ in stream:
        pass
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


def test_a_worker_that_is_forked_waits_for_no_thread_of_its_parent(store):
    stream = store.stream(frames_per_batch=700, crop_frames=50)
    for _ in stream.batches(go_on=True):
        time.sleep(0.02)  # a step of training
    assert stream._next is not None
    loader = DataLoader(stream.dataset(), batch_size=None, num_workers=1, multiprocessing_context="fork", timeout=20)
    assert [batch.ids for batch in loader] == [batch.ids for batch in at_epoch(store, 1)]


def at_epoch(store: FeatureStore, epoch: int) -> list[Batch]:
    stream = store.stream(frames_per_batch=700, crop_frames=50)
    stream.seek(epoch)
    return list(stream)


def broken_copy(store: FeatureStore, folder: Path) -> tuple[FeatureStore, list[int]]:
    shutil.copytree(str(store.path.parent), folder / "copy")
    copy = FeatureStore(folder / "copy" / "dev", output="layer-9")
    return copy, sorted(set(copy.table["shard"].to_pylist()))


def damage(path: StorePath, how: str) -> None:
    assert isinstance(path, Path)
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])


@pytest.mark.parametrize(
    ("how", "message"), [("gone", "cannot be read"), ("truncated", "c/"), ("index", "damaged index")]
)
def test_a_damaged_shard_is_an_error_or_skipped_by_all_ranks(store, tmp_path, how, message):
    copy, shards = broken_copy(store, tmp_path)
    path = copy.path / "features.zarr" / "layer-9" / "c" / str(shards[1]) / "0"
    state = store.stream(frames_per_batch=700).state_dict()
    damage(path, how)
    with pytest.raises(StoreError, match=message):
        list(FeatureStore(copy.path).stream(frames_per_batch=700))
    lost = {row["id"] for row in store.table.to_pylist() if row["shard"] == shards[1]}
    for world in (1, 3):
        streams = [
            FeatureStore(copy.path).stream(frames_per_batch=700, rank=r, world_size=world, on_error="skip")
            for r in range(world)
        ]
        for stream in streams:
            stream.load_state_dict(state)  # the plan is that of the whole store
        steps = list(zip(*streams, strict=True))
        assert {n for step in steps for batch in step for n in batch.ids} == set(store.ids) - lost
        assert all(len(batch) for step in steps for batch in step)
        assert all(set(stream.skipped) == lost for stream in streams)
        assert all(str(path) in reason for stream in streams for reason in stream.skipped.values())


def test_nothing_left_is_an_error(store, tmp_path):
    copy, shards = broken_copy(store, tmp_path)
    for shard in shards:
        damage(copy.path / "features.zarr" / "layer-9" / "c" / str(shard) / "0", "gone")
    with pytest.raises(StoreError, match="every shard is damaged"):
        list(FeatureStore(copy.path).stream(frames_per_batch=700, on_error="skip"))


def test_a_shard_cut_in_place_while_streaming_is_skipped(store, tmp_path):
    copy, shards = broken_copy(store, tmp_path)
    path = copy.path / "features.zarr" / "layer-9" / "c" / str(shards[2]) / "0"
    lost = {row["id"] for row in store.table.to_pylist() if row["shard"] == shards[2]}
    stream = copy.stream(frames_per_batch=250, shuffle="none", on_error="skip", prefetch=1)
    batches = iter(stream)
    next(batches)
    os.truncate(str(path), 100)
    rest = list(batches)[3:]
    assert not {name for batch in rest for name in batch.ids} & lost
    assert {name for batch in stream for name in batch.ids} == set(store.ids) - lost


def test_ranks_of_the_environment_come_as_torchrun_sets_them(store, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (store.stream(frames_per_batch=900).rank, store.stream(frames_per_batch=900).world_size) == (1, 2)
    for rank, world in (("2", "2"), ("a", "2"), ("0", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(StoreError, match="set both as torchrun does"):
            store.stream(frames_per_batch=900)


def test_what_may_pass_is_an_error_though_damage_is_skipped(store, tmp_path, monkeypatch):
    copy, _ = broken_copy(store, tmp_path)
    opened = shards_module.LocalShard

    def refused(path):
        if path.parent.name == "1":
            raise StoreError(f"{path} cannot be read: Permission denied")
        return opened(path)

    monkeypatch.setattr(split_module, "LocalShard", refused)
    with pytest.raises(StoreError, match="Permission denied"):
        list(copy.stream(frames_per_batch=700, on_error="skip"))


def test_a_disk_that_fails_inside_a_shard_is_skipped_and_read_once(store, tmp_path, monkeypatch):
    copy, shards = broken_copy(store, tmp_path)
    bad = copy.path / "features.zarr" / "layer-9" / "c" / str(shards[2]) / "0"
    looked = []
    monkeypatch.setattr(
        shards_module.LocalShard,
        "check_readable",
        lambda self: looked.append(self.path) or (self.path == bad and fail(self)),
    )
    read = shards_module.LocalShard.read_into

    def fail(self):
        raise DamagedError(f"{self.path} cannot be read at byte 512: Input/output error")

    monkeypatch.setattr(
        shards_module.LocalShard, "read_into", lambda self, *rest: fail(self) if self.path == bad else read(self, *rest)
    )
    lost = {row["id"] for row in store.table.to_pylist() if row["shard"] == shards[2]}
    with pytest.raises(StoreError, match="Input/output error"):
        list(copy.stream(frames_per_batch=700))
    stream = copy.stream(frames_per_batch=700, on_error="skip")
    for _ in range(2):
        assert {name for batch in stream for name in batch.ids} == set(store.ids) - lost
    assert set(stream.skipped) == lost
    assert looked.count(bad) == 1
    assert len(looked) <= len(shards)


def test_a_shard_that_goes_while_streaming(store, tmp_path, caplog):
    copy, shards = broken_copy(store, tmp_path)
    strict, lenient = (copy.stream(frames_per_batch=250, shuffle="none", on_error=how) for how in ("raise", "skip"))
    strict, lenient = iter(strict), iter(lenient)
    next(strict), next(lenient)
    path = copy.path / "features.zarr" / "layer-9" / "c" / str(shards[-1]) / "0"
    damage(path, "gone")
    copy.close()
    with pytest.raises(StoreError, match=f"{path} cannot be read"):
        list(strict)
    lost = {row["id"] for row in store.table.to_pylist() if row["shard"] == shards[-1]}
    rest = list(lenient)[5:]  # those before were read ahead
    assert rest
    assert not {n for batch in rest for n in batch.ids} & lost
    assert f"{len(lost)} utterances are skipped: {path}" in caplog.text


def test_in_a_data_loader_the_order_is_the_streams(store):
    whole = list(store.stream(frames_per_batch=700))
    for workers in (0, 2):
        dataset = store.stream(frames_per_batch=700).dataset()
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=workers)
        for epoch in range(2):
            dataset.set_epoch(epoch)
            batches = list(loader)
            if epoch == 0:
                assert all(same(a, b) for a, b in zip(batches, whole, strict=True))
            assert sorted(n for batch in batches for n in batch.ids) == sorted(store.ids)
            assert batches[0].epoch == epoch


def test_workers_that_persist_begin_every_epoch_where_they_are_told(store):
    dataset = store.stream(frames_per_batch=700).dataset()
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2, persistent_workers=True)
    alone = store.stream(frames_per_batch=700)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        whole = list(alone)
        assert all(same(a, b) for a, b in zip(loader, whole, strict=True))
    dataset.set_epoch(0, 3)
    assert [batch.number for batch in loader] == list(range(3, len(alone.plan(0))))


def test_waiting_is_counted(store, monkeypatch):
    read_into = Split.read_into

    def slow(self, *arguments):
        time.sleep(0.05)
        read_into(self, *arguments)

    monkeypatch.setattr(Split, "read_into", slow)
    stream = store.stream(frames_per_batch=1500, threads=1, prefetch=1)
    begun = time.perf_counter()
    count = sum(1 for _ in stream)
    spent = time.perf_counter() - begun
    assert 0.5 * spent < stream.wait_seconds <= spent
    assert spent >= 0.05 * count


DDP = """
import sys, torch
import torch.distributed as dist
from encodeonce.store import FeatureStore
from encodeonce.train.ranks import leave

rank, world, rendezvous, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(32, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
stream = FeatureStore(path, output="layer-9").stream(frames_per_batch=700, dtype="float32")
assert (stream.rank, stream.world_size) == (rank, world)
seen = []
for batch in stream:
    optimizer.zero_grad()
    model(batch.features).square().mean().backward()
    optimizer.step()
    seen += batch.ids
everything = [None] * world
dist.all_gather_object(everything, (seen, stream.state_dict(), model.module.weight.sum().item()))
assert len({repr(state) for _, state, _ in everything}) == 1
assert len({weight for _, _, weight in everything}) == 1
if rank == 0:
    print(*sorted(name for names, _, _ in everything for name in names))
leave(0)
"""


def test_under_ddp_the_ranks_share_the_sequence(store, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DDP, str(rank), "2", str(tmp_path / "meet"), str(store.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    assert results[0][0].split() == sorted(store.ids)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu_the_values_are_those_of_the_cpu(store, codes):
    options: dict[str, Any] = {
        "frames_per_batch": 700,
        "outputs": ["layer-9", "layer-9-int8"],
        "beside": {"codes": codes},
    }
    for far, near in zip(store.stream(device="cuda", **options), store.stream(**options), strict=True):
        for name in near.outputs:
            assert far[name].values.is_cuda
            torch.testing.assert_close(far[name].values.cpu(), near[name].values, rtol=0, atol=1e-6)
            assert torch.equal(far[name].lengths.cpu(), near[name].lengths)
