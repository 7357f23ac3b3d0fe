"""Reading and streaming from object stores: the same values in few requests, and damage found on the way."""

import os
import pickle
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from encodeonce.store import FeatureStore, Output, StoreError
from encodeonce.store.objects import ObjectPath
from object_server import WebServer
from streams import frames_of, make_store, status_of

OUTPUTS = [Output("layer-9", 32, "float16", "hidden_states[9]"), Output("layer-9-int8", 32, "int8", "hidden_states[9]")]
NAMES = [output.name for output in OUTPUTS]


@pytest.fixture
def local(tmp_path: Path) -> FeatureStore:
    return make_store(tmp_path / "s", frames_of(60), OUTPUTS)


def remote(web: WebServer, store: FeatureStore, cache: Path, cache_bytes: int = 10**9) -> FeatureStore:
    """The local store by way of a web server that serves the folder above it."""
    url = "/".join((web.url, *Path(str(store.path)).parts[-3:]))
    return FeatureStore(url, output="layer-9", cache=cache, cache_bytes=cache_bytes)


def gets(web: WebServer, output: str) -> Counter[str]:
    """Requests for the shard files of an output."""
    return Counter({path: n for (_, path), n in web.requests.items() if f"/{output}/c/" in path})


def flip_a_byte(store: FeatureStore) -> tuple[int, set[str]]:
    """Damage the frames of a shard; its number, and the utterances in it."""
    shard = store["utt-007"].record["shard"]
    path = Path(str(store.path)) / "features.zarr" / "layer-9" / "c" / str(shard) / "0"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    return shard, {row["id"] for row in store.table.to_pylist() if row["shard"] == shard}


@pytest.mark.parametrize("kind", ["bucket", "memory"])
@pytest.mark.parametrize("cache_bytes", [10**9, 0])
def test_an_object_store_streams_what_a_disk_streams(kind, cache_bytes, local, request, tmp_path):
    place: ObjectPath = request.getfixturevalue(kind)
    written = make_store(place / "s", frames_of(60), OUTPUTS)
    store = FeatureStore(str(written.path), output="layer-9", cache=tmp_path / "cache", cache_bytes=cache_bytes)
    for options in (
        {"shuffle": "all"},
        {"shuffle": "shards", "shard_window": 2},
        {"shuffle": "all", "crop_frames": 40},
    ):
        ours, theirs = (s.stream(frames_per_batch=900, outputs=NAMES, **options) for s in (store, local))
        for a, b in zip(ours, theirs, strict=True):
            assert a.ids == b.ids
            assert a.text == b.text
            assert all(np.array_equal(a[name].values, b[name].values) for name in NAMES)
    names = local.ids[::-7]
    for name in NAMES:
        np.testing.assert_array_equal(store.read(names, name).values, local.read(names, name).values)


def test_each_shard_is_fetched_once_and_served_from_the_disk_after(local, web, tmp_path):
    store = remote(web, local, tmp_path / "cache")
    stream = store.stream(frames_per_batch=900, shard_window=2)
    assert stream.options.shuffle == "shards"
    shards = len({row["shard"] for row in local.table.to_pylist()})
    list(stream)
    first = gets(web, "layer-9")
    assert len(first) == shards
    list(stream)
    again = remote(web, local, tmp_path / "cache")
    list(again.stream(frames_per_batch=900, shard_window=2))
    assert gets(web, "layer-9") == first
    assert sum(1 for path in (tmp_path / "cache").rglob("*") if path.is_file()) >= shards


def test_a_batch_of_many_utterances_takes_few_requests(local, web, tmp_path):
    store = remote(web, local, tmp_path / "cache", cache_bytes=0)
    store.read(local.ids)
    web.requests.clear()
    np.testing.assert_array_equal(store.read(local.ids).values, local.read(local.ids, "layer-9").values)
    shards = len({row["shard"] for row in local.table.to_pylist()})
    assert sum(gets(web, "layer-9").values()) == shards  # neighbours come together, and indices were read before
    assert FeatureStore(str(store.path), cache_bytes=0).stream(frames_per_batch=900).options.shuffle == "all"


def test_a_flipped_byte_is_found_on_the_way_to_the_cache(local, web, tmp_path):
    shard, lost = flip_a_byte(local)
    with pytest.raises(StoreError, match=f"/layer-9/c/{shard}/0.*sha256"):
        list(remote(web, local, tmp_path / "cache").stream(frames_per_batch=900))
    stream = remote(web, local, tmp_path / "cache").stream(frames_per_batch=900, on_error="skip")
    seen = {name for batch in stream for name in batch.ids}
    assert seen == set(local.ids) - lost
    assert set(stream.skipped) == lost


def test_a_missing_shard_is_skipped_by_all_ranks(local, web, tmp_path):
    shard = local["utt-007"].record["shard"]
    (Path(str(local.path)) / "features.zarr" / "layer-9" / "c" / str(shard) / "0").unlink()
    lost = {row["id"] for row in local.table.to_pylist() if row["shard"] == shard}
    streams = [
        remote(web, local, tmp_path / "cache").stream(frames_per_batch=900, rank=r, world_size=2, on_error="skip")
        for r in range(2)
    ]
    steps = list(zip(*streams, strict=True))
    assert {name for step in steps for batch in step for name in batch.ids} == set(local.ids) - lost


def test_a_store_over_http_is_opened_without_a_listing_and_pickled(local, web, tmp_path):
    store = pickle.loads(pickle.dumps(remote(web, local, tmp_path / "cache")))
    assert store["utt-003"].text == "words of 3"
    np.testing.assert_array_equal(store["utt-003"].features, local["utt-003"]["layer-9"])
    by_set = FeatureStore(str(store.path.parent), split="dev")
    assert by_set.ids == local.ids


def test_a_replaced_shard_is_not_read_with_old_offsets(memory, tmp_path):
    lengths = frames_of(60)
    written = make_store(memory / "s", lengths, OUTPUTS)
    ranges, cached = (
        FeatureStore(written.path, output="layer-9", cache=tmp_path / "cache", cache_bytes=size) for size in (0, 10**9)
    )
    before = ranges.read(ranges.ids).values
    names = cached.ids
    array = cached.path / "features.zarr" / "layer-9" / "c"
    shard = ranges["utt-007"].record["shard"]
    path = array / str(shard) / "0"
    data = path.read_bytes()
    assert isinstance(path, ObjectPath)
    path.put(bytes(512) + data)  # everything lies elsewhere now
    with pytest.raises(StoreError, match=f"/c/{shard}/0 was rewritten since the store was opened"):
        ranges.read(names)
    with pytest.raises(StoreError, match=f"/c/{shard}/0"):
        list(cached.stream(frames_per_batch=900))
    path.put(data)
    np.testing.assert_array_equal(FeatureStore(written.path, output="layer-9").read(names).values, before)


def test_damage_that_one_rank_meets_leaves_the_steps_of_all_the_same(local, web, tmp_path):
    _, lost = flip_a_byte(local)
    streams = [
        remote(web, local, tmp_path / "cache").stream(frames_per_batch=400, rank=r, world_size=2, on_error="skip")
        for r in range(2)
    ]
    for _ in range(3):
        ranks = [list(stream) for stream in streams]
        assert len(ranks[0]) == len(ranks[1])
        seen = [name for batches in ranks for batch in batches for name in batch.ids]
        assert sorted(seen) == sorted(set(local.ids) - lost)
        assert len({str(stream.state_dict()) for stream in streams}) == 1


def test_shards_are_brought_before_they_are_due(local, web, tmp_path):
    stream = remote(web, local, tmp_path / "cache").stream(
        frames_per_batch=250, shuffle="shards", shard_window=1, prefetch=1, threads=1
    )
    batches = iter(stream)
    next(batches)
    give_up = time.monotonic() + 20
    while len(gets(web, "layer-9")) < 5 and time.monotonic() < give_up:
        time.sleep(0.01)
    assert len(gets(web, "layer-9")) >= 5  # the first batches lie in one shard


def test_windows_that_the_cache_cannot_hold_are_refused(local, web, tmp_path):
    size = 1024 * 32 * 2  # a shard's values
    store = remote(web, local, tmp_path / "cache", cache_bytes=5 * size)
    with pytest.raises(
        StoreError, match=r"the disk cache holds 5 shards .* take shard_window=2 or less .* cache_bytes=0"
    ):
        store.stream(frames_per_batch=900, shard_window=3)
    stream = store.stream(frames_per_batch=900, shard_window=2)
    assert sorted(name for batch in stream for name in batch.ids) == sorted(local.ids)
    kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert kept <= 5 * size


def test_a_forked_process_is_told_and_does_not_hang(memory):
    store = make_store(memory / "s", frames_of(30))
    store.read(store.ids)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            store.read(store.ids)
        except StoreError as error:
            code = 0 if "spawn" in str(error) else 2
        finally:
            os._exit(code)
    assert status_of(child) == 0
