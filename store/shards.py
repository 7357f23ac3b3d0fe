"""Shard files open for reading: mapped or read where they are local, fetched by ranges where they are not."""

import errno
import mmap
import os
import resource
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.objects import ObjectPath

MOST_OPEN_SHARDS = 1024
"""Each takes two file handles (its own, and that of its mapping); a pool takes at most a quarter of what a process may open."""

IN_FLIGHT = 16
"""Shards of an object store that are read at the same time; each may have several ranges in flight."""

READ_BYTES = 8 << 20
TOO_MANY = (errno.EMFILE, errno.ENFILE)

ShardVersion = Any
"""Another one when a shard was rewritten: size, time and inode of a file, a `version.Version` far away; None where that is not told."""


class LocalShard:
    """A shard file on this machine. What was opened stays readable, also when its name is gone or stands for a newer file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (held for as long as anybody reads)
        except FileNotFoundError as error:
            raise DamagedError(f"{path} cannot be read: {error.strerror}; run feature-store verify") from error
        except OSError as error:
            hint = "raise the limit of open files (ulimit -n)" if error.errno in TOO_MANY else "see to it and try again"
            raise StoreError(f"{path} cannot be read: {error.strerror or error}; {hint}") from error
        state = os.fstat(self._file.fileno())
        self.size = state.st_size
        self.version: ShardVersion = (state.st_size, state.st_mtime_ns, state.st_ino)
        self._map: mmap.mmap | None = None
        self._copied = 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def was_cut(self, before: ShardVersion) -> bool:
        """Whether this is the file of an earlier version, but shorter."""
        return self.version[2] == before[2] and self.size < before[0]

    def end(self, size: int) -> bytes:
        """The last bytes of the file."""
        return os.pread(self._file.fileno(), size, max(0, self.size - size))

    def views(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[np.ndarray]:
        """Ranges of the mapped file as read-only bytes, uncopied."""
        if self._map is None:
            try:
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise StoreError(
                    f"{self.path} cannot be mapped: {error.strerror}; arrays that are kept hold their shards open: "
                    f"copy them, or raise the limit of open files (ulimit -n)"
                ) from error
        mapped = self._map
        return [np.frombuffer(mapped, np.uint8, size, offset) for offset, size in zip(offsets, sizes, strict=True)]

    def copy_into(self, target: np.ndarray, offset: int) -> None:
        """Fill an array of bytes in the quickest way: read, until the mapping has paid for the pages that it has to touch."""
        if self._map is None and self._copied < self.size // 2:
            self._copied += len(target)
            self.read_into(target.data, offset)
        else:
            np.copyto(target, self.views([offset], [len(target)])[0])

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill a buffer from the file. A failing disk is an error here, where touching a mapping would end the process."""
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._file.fileno(), [target[done:]], offset + done)
            except OSError as error:
                raise DamagedError(f"{self.path} cannot be read at byte {offset + done}: {error.strerror}") from error
            if not count:
                raise DamagedError(
                    f"{self.path} ends at byte {offset + done}, and its index promises frames up to byte "
                    f"{offset + len(target)}; run feature-store verify"
                )
            done += count

    def check_readable(self) -> None:
        """Read all of it.

        Raises:
            DamagedError: the disk fails.
        """
        room = memoryview(bytearray(READ_BYTES))
        for offset in range(0, self.size, READ_BYTES):
            self.read_into(room[: min(READ_BYTES, self.size - offset)], offset)


class RemoteShard:
    """A shard in an object store, read by ranges, all of them of the object that was there when it was opened."""

    def __init__(self, path: ObjectPath) -> None:
        self.path = path
        with self._missing_is_damage():
            head = path.head()
        self.size, self.version = head.size, head.version

    def end(self, size: int) -> bytes:
        """The last bytes of the object."""
        with self._missing_is_damage():
            return bytes(self.path.read_end(min(size, self.size), self.version))

    def views(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[np.ndarray]:
        """Ranges of the object as read-only bytes: neighbours fetched together, many in flight."""
        with self._missing_is_damage():
            parts = self.path.read_ranges(list(offsets), list(sizes), self.version)
        return [np.frombuffer(part, np.uint8) for part in parts]

    def check_readable(self) -> None:
        """Nothing: what an object store gives is whole or an error, and errors pass."""

    @contextmanager
    def _missing_is_damage(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise DamagedError(f"{self.path} is not there; run feature-store verify") from error


Shard = LocalShard | RemoteShard
Key = tuple[int, str, int]
"""(whose it is, array, shard number)"""


class ShardPool:
    """The shards that were used last, open. Threads may share it; a forked process begins its own."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._begin()

    def _begin(self) -> None:
        self._process, self._lock = os.getpid(), RLock()  # a split that is collected inside comes back here
        self._open: OrderedDict[Key, Shard] = OrderedDict()
        self._fetchers: ThreadPoolExecutor | None = None

    def _held(self) -> AbstractContextManager[Any]:
        """The lock, of this process: after a fork its parent's may be held for ever, and the threads are not here."""
        if self._process != os.getpid():
            self._begin()
        return self._lock

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: Key, open_shard: Callable[[], Shard]) -> Shard:
        """The shard of a key, opened where it is not open yet."""
        with self._held():
            if key in self._open:
                self._open.move_to_end(key)
                return self._open[key]
        shard = open_shard()
        with self._held():
            self._open[key] = shard
            self._open.move_to_end(key)
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
        return shard

    def forget(self, owner: int, *rest: str | int) -> None:
        """Let go of an owner's shards, or of one; arrays that are still held keep theirs."""
        begins = (owner, *rest)
        with self._held():
            for key in list(self._open):
                if key[: len(begins)] == begins:
                    self._open.pop(key, None)

    @property
    def fetchers(self) -> ThreadPoolExecutor:
        """Threads that read several shards of an object store at the same time."""
        with self._held():
            if self._fetchers is None:
                self._fetchers = ThreadPoolExecutor(IN_FLIGHT, "fetch")
            return self._fetchers


def affordable_shards() -> int:
    """How many shards this process can keep open."""
    handles, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(MOST_OPEN_SHARDS, handles // 8)) if handles != resource.RLIM_INFINITY else MOST_OPEN_SHARDS


POOL = ShardPool(affordable_shards())
"""One for the process, whatever number of splits it reads."""

OWNERS = count()
"""Numbers for those whose shards lie in a pool."""
