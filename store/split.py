"""One split of a feature set, open for reading: where the frames of an utterance lie, and getting them."""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from encodeonce.store.cache import ShardCache
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.files import read_json
from encodeonce.store.format import ABSENT, index_bytes, read_index
from encodeonce.store.layout import Output, SplitPaths, published_outputs, read_attributes
from encodeonce.store.objects import ObjectPath, StorePath
from encodeonce.store.shards import OWNERS, POOL, LocalShard, RemoteShard, Shard, ShardPool, ShardVersion
from encodeonce.store.table import open_table

FETCHES = 3
"""Attempts to open what was fetched into a cache that others empty at the same time."""


class Split:
    """A split's outputs, and its utterances in the order of their rows.

    What an index says of utterances is kept as offsets, so a shard's index is read once. Threads may share a split; it can
    be pickled, and survives a fork.
    """

    def __init__(self, path: StorePath, cache: ShardCache | None = None) -> None:
        self.path, self.paths, self._cache = path, SplitPaths(path), cache
        self.attributes = read_attributes(self.paths.group)
        self.outputs = published_outputs(self.paths, self.attributes)
        if not self.outputs:
            raise StoreError(f"{path} has no finished output yet; run extract-features again to finish it")
        self._file: pq.ParquetFile | None = open_table(self.paths.table)
        self.column_names: list[str] = self._file.schema_arrow.names
        index = self._file.read(columns=["id", "shard", "row", "frames"])
        self.ids: pa.ChunkedArray = index["id"]
        self.rows, self.frames, self.shards = (_numbers(index[name]) for name in ("row", "frames", "shard"))
        if not (np.diff(self.rows) > 0).all():
            raise DamagedError(
                f"{self.paths.table} is not in the order of its rows; take it away, and the next run makes it again"
            )
        self._arrays: dict[str, StoredArray] = {}
        self._own_pools()

    def _own_pools(self) -> None:
        self._owner = next(OWNERS)
        weakref.finalize(self, POOL.forget, self._owner)
        # What is open stays on the disk when the cache has let go of it: no more of that than the cache may hold.
        self._cached_pool = ShardPool(min(128, self.cached_shards))

    @property
    def cached_shards(self) -> int:
        """How many shards of its widest output the disk cache holds; 0 without one."""
        if not self.is_cached or self._cache is None:
            return 0
        row_bytes = max(o.width * np.dtype(o.dtype).itemsize for o in self.outputs.values())
        return self._cache.limit_bytes // (self.attributes.shard_frames * row_bytes)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name != "table"}
        return {**state, "_file": None, "_cached_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._own_pools()

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def table(self) -> pa.Table:
        """Every column of utterances.parquet, as it was when the split was opened."""
        if self._file is not None:
            return self._file.read()
        table = open_table(self.paths.table).read()  # a pickled split has no open file
        if not table["id"].equals(self.ids):
            raise StoreError(f"{self.paths.table} was replaced since the store was opened; open the store again")
        return table

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of utterances.parquet, read without the others."""
        if "table" in self.__dict__ or self._file is None:
            return self.table.select(list(names))
        return self._file.read(columns=list(names))

    @property
    def is_cached(self) -> bool:
        """Whether whole shards come by way of a disk cache."""
        return self.is_remote and self._cache is not None

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store."""
        return isinstance(self.path, ObjectPath)

    def close(self) -> None:
        """Let go of the open shards; arrays that are still held keep theirs."""
        POOL.forget(self._owner)
        self._cached_pool.forget(self._owner)

    def views(self, output: Output, indices: np.ndarray) -> list[np.ndarray]:
        """The stored values `[T, D]` of utterances, read-only: mapped where they are local, fetched where not."""
        dtype = np.dtype(output.dtype).newbyteorder("<")
        return [d.view(dtype).reshape(-1, output.width) for d in self._fetch(self._array(output), indices)]

    def affines(self, output: Output, indices: np.ndarray) -> list[np.ndarray]:
        """Scale and offset `[2, D]` float32 of utterances of an int8 output."""
        return [d.view("<f4").reshape(2, -1) for d in self._fetch(self._array(output, affine=True), indices)]

    def copy_into(self, output: Output, indices: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Fill an array of bytes an utterance with its stored values, at once, for somebody who waits."""
        self._fill(self._array(output), indices, targets, None, LocalShard.copy_into)

    def read_into(
        self, output: Output, indices: np.ndarray, targets: Sequence[np.ndarray], skip: np.ndarray | None = None
    ) -> None:
        """Fill an array of bytes an utterance with its stored values, as a reader in the background does.

        `skip` is how many frames of each utterance are left out before. Of an object store whole shards are taken through
        the disk cache, where there is one.
        """
        self._fill(self._array(output, whole=True), indices, targets, skip, _read_into)

    def read_affines_into(self, output: Output, indices: np.ndarray, targets: Sequence[np.ndarray]) -> None:
        """Fill the bytes of `[2, D]` float32 an utterance with its scale and offset, in the way of `read_into`."""
        self._fill(self._array(output, affine=True, whole=True), indices, targets, None, _read_into)

    def _fill(
        self,
        array: "StoredArray",
        indices: np.ndarray,
        targets: Sequence[np.ndarray],
        skip: np.ndarray | None,
        fill: Callable[[LocalShard, np.ndarray, int], None],
    ) -> None:
        offsets = self._locate(array, indices)
        if skip is not None:
            offsets = offsets + skip * array.row_bytes
        starts, far = offsets.tolist(), []
        for i, shard in enumerate(self.shards[indices].tolist()):
            opened = self._open(array, shard)
            if isinstance(opened, LocalShard):
                fill(opened, targets[i], starts[i])
            else:
                far.append(i)
        if far:
            sizes = np.array([len(targets[i]) for i in far])
            for i, data in zip(far, self._ranges(array, indices[far], offsets[far], sizes), strict=True):
                targets[i][:] = data

    def bring(self, output: Output, shard: int) -> None:
        """Have a shard of an object store in the disk cache; nothing to do without a cache, or on a local disk."""
        for affine in (False, True) if output.affine_name else (False,):
            array = self._array(output, affine, whole=True)
            if array.whole:
                self._open(array, shard)

    def problems(self, output: Output, shards: Sequence[int], thorough: bool = False) -> dict[int, str]:
        """Why the utterances of shards cannot be read: gone, too short, or the index is damaged; nothing of those that can.

        `thorough` also reads all of each, as the stream does: a disk may fail in the middle, and what comes to the cache
        may not be what was recorded.

        Raises:
            StoreError: it cannot be known now: no network, no permission, too many open files.
        """

        def look(shard: int) -> str | None:
            try:
                for affine in (False, True) if output.affine_name else (False,):
                    array = self._array(output, affine, whole=thorough)
                    self._pool(array).forget(self._owner, array.name, shard)
                    self._learn(array, shard)
                    if thorough:
                        self._open(array, shard).check_readable()
            except DamagedError as error:
                return str(error)
            return None

        found = zip(shards, self._each(look, shards), strict=True)
        return {shard: problem for shard, problem in found if problem is not None}

    def _array(self, output: Output, affine: bool = False, whole: bool = False) -> "StoredArray":
        """An array of the split; `whole` one whose shards come by way of the disk cache, where there is one."""
        if affine and output.affine_name is None:
            raise StoreError(f"{output.name} is {output.dtype}, not int8: it has no scales")
        name = output.affine_name if affine and output.affine_name else output.name
        whole = whole and self.is_cached
        key = f"{name} cached" if whole else name
        if key not in self._arrays:
            self._arrays[key] = StoredArray(self.paths, name, output, affine, whole, self.frames)
        return self._arrays[key]

    def _fetch(self, array: "StoredArray", indices: np.ndarray) -> list[np.ndarray]:
        """The bytes of utterances."""
        return self._ranges(array, indices, self._locate(array, indices), array.sizes[indices])

    def _ranges(
        self, array: "StoredArray", indices: np.ndarray, offsets: np.ndarray, sizes: np.ndarray
    ) -> list[np.ndarray]:
        """Bytes of the shards of utterances; of an object store several shards at a time, the ranges of one together."""
        starts, lengths = offsets.tolist(), sizes.tolist()
        groups: dict[int, list[int]] = {}
        for i, shard in enumerate(self.shards[indices].tolist()):
            groups.setdefault(shard, []).append(i)

        def read(shard: int) -> list[np.ndarray]:
            some = groups[shard]
            return self._open(array, shard).views([starts[i] for i in some], [lengths[i] for i in some])

        found: list[Any] = [None] * len(starts)
        for some, parts in zip(groups.values(), self._each(read, list(groups)), strict=True):
            for i, part in zip(some, parts, strict=True):
                found[i] = part
        return found

    def _each(self, work: Callable[[int], Any], shards: Sequence[int]) -> Iterator[Any]:
        """Some work for each of several shards, at the same time where they are far away."""
        return POOL.fetchers.map(work, shards) if self.is_remote and len(shards) > 1 else map(work, shards)

    def _locate(self, array: "StoredArray", indices: np.ndarray) -> np.ndarray:
        """Byte offsets of utterances in their shards, int64; reads the index of every shard that was not met yet."""
        offsets = array.offsets[indices]
        unknown = indices[offsets < 0]
        if len(unknown):
            for _ in self._each(lambda shard: self._learn(array, shard), np.unique(self.shards[unknown]).tolist()):
                pass
            offsets = array.offsets[indices]
        return offsets

    def _learn(self, array: "StoredArray", shard: int) -> None:
        """Keep what a shard's index says of its utterances."""
        opened, size = self._open(array, shard), self.attributes.shard_frames
        slots = self.attributes.slots(array.output.width)
        end = memoryview(opened.end(index_bytes(slots)))
        try:
            index = read_index(end, slots, str(opened.path))
        except DamagedError as error:
            raise DamagedError(f"{error}; run feature-store verify") from error
        first, last = np.searchsorted(self.shards, [shard, shard + 1]).tolist()
        offsets = index[(self.rows[first:last] % size) // (size // slots), 0]
        ends = np.where(offsets == ABSENT, ABSENT, offsets + array.sizes[first:last].astype("u8"))
        bad = np.flatnonzero(ends > opened.size)
        if len(bad):
            at = int(bad[0])
            where = "absent" if offsets[at] == ABSENT else f"up to byte {ends[at]} of {opened.size}"
            raise DamagedError(
                f"{opened.path} does not hold the frames that its table promises "
                f"({self.ids[first + at].as_py()}: {where}); open the store again if it was written to, else run feature-store verify"
            )
        array.versions[shard] = opened.version
        array.offsets[first:last] = offsets

    def _pool(self, array: "StoredArray") -> ShardPool:
        return self._cached_pool if array.whole else POOL

    def _open(self, array: "StoredArray", shard: int) -> Shard:
        """The shard file of an array: from the disk, or of an object store by ranges, or whole from the disk cache."""

        def open_shard() -> Shard:
            path = array.path(shard)
            if not isinstance(path, ObjectPath):
                opened: Shard = LocalShard(path)
            elif array.whole:
                return self._fetched(array, shard, path)
            else:
                opened = RemoteShard(path)
            before = array.versions.get(shard, opened.version)
            if not isinstance(opened, RemoteShard) and opened.was_cut(before):
                raise DamagedError(f"{path} was cut from {before[0]} to {opened.size} bytes; run feature-store verify")
            if before != opened.version:
                raise StoreError(f"{path} was rewritten since the store was opened; open the store again")
            return opened

        return self._pool(array).get((self._owner, array.name, shard), open_shard)

    def _fetched(self, array: "StoredArray", shard: int, path: ObjectPath) -> LocalShard:
        """A shard by way of the disk cache, checked against the commit record as it was when it was first asked for."""
        assert self._cache is not None
        if shard in array.broken:
            raise DamagedError(array.broken[shard])
        try:
            if shard not in array.recorded:
                entry = read_json(self.paths.commit(shard))["outputs"][array.output.name]
                entry = entry["affine"] if array.affine else entry
                array.recorded[shard] = entry["size"], entry["sha256"]
            for _ in range(FETCHES):
                fetched = self._cache.fetch(path, *array.recorded[shard])
                with suppress(DamagedError):
                    return LocalShard(fetched)
            raise StoreError(
                f"{fetched} was evicted before it could be opened, {FETCHES} times; take a larger cache_bytes"
            )
        except KeyError as error:
            raise DamagedError(f"{self.paths.commit(shard)} lacks {error}") from error
        except DamagedError as error:
            array.broken[shard] = str(error)  # it is not fetched again for each of its utterances
            raise


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column without nulls; pyarrow's own to_numpy would import pandas, where that is installed."""
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks] or [np.empty(0, np.int64)])


def _read_into(shard: LocalShard, target: np.ndarray, offset: int) -> None:
    shard.read_into(target.data, offset)


class StoredArray:
    """An array of a split, an output's values or an int8 output's scales: where each utterance lies in its shard file."""

    def __init__(
        self, paths: SplitPaths, name: str, output: Output, affine: bool, whole: bool, frames: np.ndarray
    ) -> None:
        self.name, self.output, self.affine, self.whole = name, output, affine, whole
        self._folder = paths.group / name / "c"
        self.row_bytes = output.width * np.dtype(output.dtype).itemsize
        self.sizes = np.full(len(frames), 8 * output.width) if affine else frames.astype(np.int64) * self.row_bytes
        """Bytes of each utterance, int64."""
        self.offsets = np.full(len(frames), -1, np.int64)
        """Byte offsets of the utterances in their shard files; -1 where the shard's index was not read yet."""
        self.versions: dict[int, ShardVersion] = {}
        """The states of the shard files that the offsets were learnt from."""
        self.recorded: dict[int, tuple[int, str]] = {}
        """Size and sha256 of shards, from their commit records; filled for shards that go through the disk cache."""
        self.broken: dict[int, str] = {}
        """What is wrong with shards whose bytes are not those recorded."""

    def path(self, shard: int) -> StorePath:
        """The shard file."""
        path: Path | ObjectPath = self._folder / str(shard) / "0"
        return path / "0" if self.affine else path
