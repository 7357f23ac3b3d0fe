"""Whole shards on local disk: verified, under a limit, fetched once, whoever shares the folder."""

import hashlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encodeonce.store import cache as cache_module
from encodeonce.store.cache import ShardCache
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.objects import ObjectPath

SIZE = 100_000


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a download has many."""
    monkeypatch.setattr(cache_module, "PIECE_BYTES", 1 << 13)
    monkeypatch.setattr(cache_module, "GRACE_SECONDS", 0.001)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many pieces of each object were read."""
    counts: Counter[str] = Counter()
    read_range = ObjectPath.read_range

    def counted(path: ObjectPath, *arguments: Any) -> memoryview:
        counts[path.name] += 1
        time.sleep(0.001)
        return read_range(path, *arguments)

    monkeypatch.setattr(ObjectPath, "read_range", counted)
    return counts


def shard(folder: ObjectPath, number: int, size: int = SIZE) -> tuple[ObjectPath, int, str]:
    """A shard in an object store, with what its commit record says."""
    data = np.random.default_rng(number).integers(0, 256, size, np.uint8).tobytes()
    path = folder / f"{number}"
    path.put(data)
    return path, size, hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", ["bucket", "memory"])
def test_a_shard_is_fetched_once_and_whole(kind, request, tmp_path, reads):
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    source, size, digest = shard(request.getfixturevalue(kind), 1)
    for _ in range(3):
        path = cache.fetch(source, size, digest)
        assert path.read_bytes() == source.read_bytes()
    assert reads["1"] == -(-SIZE // (1 << 13))
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [digest]


def test_the_oldest_use_leaves_first_and_the_limit_holds(memory, tmp_path, reads):
    cache = ShardCache(tmp_path / "cache", 3 * SIZE + SIZE // 2)
    shards = [shard(memory, number) for number in range(5)]
    for number in (0, 1, 2, 0, 3, 0, 4):
        cache.fetch(*shards[number])
        assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= cache.limit_bytes
        time.sleep(0.01)
    assert {file.name for file in (tmp_path / "cache").iterdir()} == {shards[number][2] for number in (0, 3, 4)}
    pieces = -(-SIZE // (1 << 13))
    assert reads == {str(number): pieces for number in range(5)}


def test_what_is_being_read_stays_readable_when_it_is_evicted(memory, tmp_path):
    cache = ShardCache(tmp_path / "cache", SIZE)
    first, second = shard(memory, 1), shard(memory, 2)
    with open(cache.fetch(*first), "rb") as held:
        time.sleep(0.01)
        cache.fetch(*second)
        assert not (tmp_path / "cache" / first[2]).exists()
        assert held.read() == first[0].read_bytes()


def test_bytes_that_are_not_those_of_the_record_are_refused(memory, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    source, size, digest = shard(memory, 1)
    data = bytearray(source.read_bytes())
    data[size // 2] ^= 1
    source.put(data)
    with pytest.raises(DamagedError, match=f"1 has sha256 {hashlib.sha256(data).hexdigest()}, .* says {digest}"):
        cache.fetch(source, size, digest)
    source.put(data[:-1])
    with pytest.raises(DamagedError, match=f"has {size - 1} bytes, its commit record says {size}"):
        cache.fetch(source, size, digest)
    source.unlink()
    with pytest.raises(DamagedError, match="is not there"):
        cache.fetch(source, size, digest)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_shard_larger_than_the_limit_is_refused_with_both_sizes(memory, tmp_path):
    with pytest.raises(StoreError, match=f"{SIZE} bytes, .* may hold {SIZE - 1}"):
        ShardCache(tmp_path / "cache", SIZE - 1).fetch(*shard(memory, 1))


def test_a_full_disk_and_a_cut_copy_are_said_or_mended(memory, tmp_path):
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    source = shard(memory, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE // 2, hard))
    try:
        with pytest.raises(StoreError, match="no room left in the shard cache"):
            cache.fetch(*source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "cache").iterdir()) == []
    os.truncate(cache.fetch(*source), SIZE // 2)
    assert cache.fetch(*source).read_bytes() == source[0].read_bytes()


def test_what_a_killed_download_left_is_cleaned_away(memory, tmp_path):
    cache = ShardCache(tmp_path / "cache", 2 * SIZE)
    first, second = shard(memory, 1), shard(memory, 2)
    (tmp_path / "cache").mkdir()
    for name in ("0" * 64, first[2]):
        (tmp_path / "cache" / f"{name}.part").write_bytes(bytes(2 * SIZE))
    assert cache.fetch(*first).read_bytes() == first[0].read_bytes()
    cache.fetch(*second)
    assert {file.name for file in (tmp_path / "cache").iterdir()} == {first[2], second[2]}


def test_what_others_keep_in_the_folder_is_left_alone_and_does_not_count(memory, tmp_path):
    folder = tmp_path / "cache"
    (folder / "sub").mkdir(parents=True)
    (folder / ("a" * 64)).mkdir()
    theirs = ["thesis.tex", "download.iso.part", "A" * 64, "0" * 63, f"{'0' * 64}.part.part", "sub/notes"]
    for name in theirs:
        (folder / name).write_bytes(bytes(2 * SIZE))
        os.utime(folder / name, (0, 0))
    cache, shards = ShardCache(folder, 2 * SIZE), [shard(memory, number) for number in range(3)]
    for one in shards:
        cache.fetch(*one)
        time.sleep(0.01)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*theirs, shards[1][2], shards[2][2]}
    assert (folder / ("a" * 64)).is_dir()


def test_a_shard_that_goes_or_is_rewritten_during_its_download(rewritten_after_head, tmp_path):
    source, size, digest, change = rewritten_after_head
    cache = ShardCache(tmp_path / "cache", 10 * SIZE)
    change(source.unlink)
    with pytest.raises(DamagedError, match=f"{source} is not there, though its commit record is"):
        cache.fetch(source, size, digest)
    source.put(bytes(size))
    change(lambda: source.put(b"x" * size))
    with pytest.raises(StoreError, match=f"{source} was rewritten since the store was opened"):
        cache.fetch(source, size, digest)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.fixture
def rewritten_after_head(
    memory: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> tuple[ObjectPath, int, str, Callable[[Callable[[], Any]], None]]:
    """A shard, and a way to do something to it as soon as its size was asked for."""
    ahead: list[Callable[[], Any]] = []
    head = ObjectPath.head

    def asked(path: ObjectPath) -> Any:
        found = head(path)
        while ahead:
            ahead.pop()()
        return found

    monkeypatch.setattr(ObjectPath, "head", asked)
    return *shard(memory, 1), ahead.append


def test_threads_share_downloads_and_stay_under_the_limit(memory, tmp_path, reads):
    shards = [shard(memory, number) for number in range(6)]
    roomy = ShardCache(tmp_path / "roomy", 10 * SIZE)
    tight = ShardCache(tmp_path / "tight", 2 * SIZE)
    wrong = []

    def read_all(cache: ShardCache, first: int) -> None:
        for step in range(12):
            source, size, digest = shards[(first + step) % 6]
            try:
                data = cache.fetch(source, size, digest).read_bytes()
            except FileNotFoundError:  # evicted before it was opened: the grace of the tests is a millisecond
                continue
            if hashlib.sha256(data).hexdigest() != digest:
                wrong.append(digest)
            if len(list(cache.folder.glob("?" * 64))) * SIZE > cache.limit_bytes:
                wrong.append("limit")

    for cache, threads in ((roomy, 8), (tight, 4)):
        running = [threading.Thread(target=read_all, args=(cache, number)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join(60)
        assert not any(thread.is_alive() for thread in running)
        if cache is roomy:
            assert set(reads.values()) == {-(-SIZE // (1 << 13))}
    assert wrong == []


def test_processes_share_downloads(web, tmp_path: Path):
    data = np.random.default_rng(0).integers(0, 256, 20_000_000, np.uint8).tobytes()
    (tmp_path / "shard").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    program = (
        "import sys\nfrom pathlib import Path\nfrom encodeonce.store.cache import ShardCache\n"
        "from encodeonce.store.objects import store_path\n"
        "folder, url, size, digest = sys.argv[1:]\n"
        "path = ShardCache(Path(folder), 10**9).fetch(store_path(url), int(size), digest)\n"
        "sys.exit(path.stat().st_size != int(size))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "cache"), f"{web.url}/shard", str(len(data)), digest]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert web.requests["GET", "/shard"] == 3  # pieces of 8 MB
    assert (tmp_path / "cache" / digest).read_bytes() == data
