"""Shard files open for reading: mapped or read where they are local, fetched by ranges where they are not."""

import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import numpy as np
from encodeonce.store.errors import DamagedError
from encodeonce.store.objects import ObjectPath

OPEN_SHARDS = 128
"""Shards that a pool keeps open; each takes two file handles (its own, and that of its mapping)."""

IN_FLIGHT = 16
"""Shards of an object store that are read at the same time; each may have several ranges in flight."""

READ_BYTES = 8 << 20

Version = tuple[int, int, int] | None


class LocalShard:
    """A shard file on this machine. What was opened stays readable, also when its name is gone or stands for a newer file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115 (held for as long as anybody reads)
        except OSError as error:
            raise DamagedError(f"{path} cannot be read: {error.strerror or error}; run feature-store verify") from error
        state = os.fstat(self._file.fileno())
        self.size = state.st_size
        self.version: Version = (state.st_size, state.st_mtime_ns, state.st_ino)
        """Another one when the shard was rewritten."""
        self._map: mmap.mmap | None = None

    def end(self, size: int) -> bytes:
        """The last bytes of the file."""
        return os.pread(self._file.fileno(), size, max(0, self.size - size))

    def views(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[np.ndarray]:
        """Ranges of the mapped file as read-only bytes, uncopied."""
        if self._map is None:
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        mapped = self._map
        return [np.frombuffer(mapped, np.uint8, size, offset) for offset, size in zip(offsets, sizes, strict=True)]

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
    """A shard in an object store, read by ranges."""

    version: Version = None

    def __init__(self, path: ObjectPath) -> None:
        self.path = path
        try:
            self.size = path.size()
        except OSError as error:
            raise DamagedError(f"{path} cannot be read: {error}; run feature-store verify") from error

    def end(self, size: int) -> bytes:
        """The last bytes of the object."""
        try:
            return bytes(self.path.read_end(min(size, self.size)))
        except OSError as error:
            raise DamagedError(f"{self.path} cannot be read: {error}; run feature-store verify") from error

    def views(self, offsets: Sequence[int], sizes: Sequence[int]) -> list[np.ndarray]:
        """Ranges of the object as read-only bytes: neighbours fetched together, many in flight."""
        try:
            parts = self.path.read_ranges(list(offsets), list(sizes))
        except OSError as error:
            raise DamagedError(f"{self.path} cannot be read: {error}; run feature-store verify") from error
        return [np.frombuffer(part, np.uint8) for part in parts]

    def check_readable(self) -> None:
        """Nothing: what an object store gives is whole or an error, and errors pass."""


Shard = LocalShard | RemoteShard
Key = tuple[str, int]
"""(array, shard number)"""


class ShardPool:
    """The shards that were used last, open. Threads may share it; a forked process begins its own."""

    def __init__(self, limit: int = OPEN_SHARDS) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Let go of every shard; arrays that are still held keep theirs."""
        self._process, self._lock = os.getpid(), Lock()
        self._open: OrderedDict[Key, Shard] = OrderedDict()
        self._fetchers: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: Key, open_shard: Callable[[], Shard], local: bool = False) -> Shard:
        """The shard of a key, opened where it is not open yet; `local` does not take one that is read by ranges."""
        if self._process != os.getpid():
            self.clear()  # its lock may have been held, and its threads are not here
        with self._lock:
            shard = self._open.get(key)
            if shard is not None and not (local and isinstance(shard, RemoteShard)):
                self._open.move_to_end(key)
                return shard
        shard = open_shard()
        with self._lock:
            self._open[key] = shard
            self._open.move_to_end(key)
            while len(self._open) > self._limit:
                self._open.popitem(last=False)
        return shard

    def forget(self, key: Key) -> None:
        """Let go of a shard."""
        with self._lock:
            self._open.pop(key, None)

    @property
    def fetchers(self) -> ThreadPoolExecutor:
        """Threads that read several shards of an object store at the same time."""
        with self._lock:
            if self._fetchers is None:
                self._fetchers = ThreadPoolExecutor(IN_FLIGHT, "fetch")
            return self._fetchers
