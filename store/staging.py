"""The files of a shard: written where they belong, or staged by a process that holds nothing, for the holder to adopt."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.files import atomic_write, begin_to_disk, move, size_of
from encodeonce.store.format import ShardItem, pack_affine_shard, pack_shard
from encodeonce.store.layout import Output, SplitAttributes, scales_file, shard_file
from encodeonce.store.objects import StorePath

TO_DISK = 8 << 20
"""Bytes after which the disk begins with them, while what follows is computed."""

Homes = Callable[[str], StorePath]
"""Where the shards of an array lie, by the array's name."""


@dataclass(frozen=True, slots=True)
class Staged:
    """What was written of a shard: its files' entries of the commit record by output, and the records of its utterances."""

    shard: int
    entries: dict[str, dict[str, Any]]
    utterances: int
    frames: int
    records: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """Writes the files of shards: to `homes`, by way of `scratch`; `check` is called before each and may refuse."""

    homes: Homes
    attributes: SplitAttributes
    scratch: StorePath
    check: Callable[[], None] = lambda: None

    def write(self, shard: int, items: Mapping[str, Iterable[ShardItem]], specs: Mapping[str, Output]) -> Staged:
        """Write some outputs of a shard; the utterances of each are the same, in the order of rows.

        Every utterance is asked for once, when the one before it is written.
        """
        entries: dict[str, dict[str, Any]] = {}
        passed: dict[str, list[tuple[int, dict[str, Any]]]] = {name: [] for name in items}
        for name, utterances in items.items():
            noted = _noting(utterances, passed[name], lambda item: (len(item.values), item.record))
            entries[name] = self.write_output(shard, specs[name], noted)
        counts = {name: len(some) for name, some in passed.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"shard {shard}: every output has to have the same utterances, and there are {counts}")
        some = next(iter(passed.values()))
        return Staged(shard, entries, len(some), sum(frames for frames, _ in some), [record for _, record in some])

    def write_output(self, shard: int, output: Output, items: Iterable[ShardItem]) -> dict[str, Any]:
        """Write one output's shard file (and its scales); return its entry for the commit record, without the SNR."""
        size, chunk = self.attributes.shard_frames, self.attributes.chunk_frames(output.width)
        affines: list[tuple[int, np.ndarray]] = []
        if output.dtype == "int8":
            items = _noting(items, affines, lambda item: (item.row, item.affine))
        entry: dict[str, Any] = {"dtype": output.dtype}
        entry |= self._write_hashed(shard_file(self.homes(output.name), shard), pack_shard(items, size, chunk))
        if output.dtype == "int8":
            path = scales_file(self.homes(f"{output.name}-affine"), shard)
            entry["affine"] = self._write_hashed(path, pack_affine_shard(affines, size, chunk))
        return entry

    def _write_hashed(self, path: StorePath, pieces: Iterator[bytes | memoryview]) -> dict[str, Any]:
        self.check()
        digest, size, on_the_way = hashlib.sha256(), 0, 0
        with atomic_write(path, self.scratch) as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
                if size - on_the_way >= TO_DISK:
                    begin_to_disk(file, on_the_way, size - on_the_way)
                    on_the_way = size
        return {"size": size, "sha256": digest.hexdigest()}


def _noting(items: Iterable[ShardItem], notes: list[Any], note: Callable[[ShardItem], Any]) -> Iterator[ShardItem]:
    """The same utterances; something of each is noted when it passes."""
    for item in items:
        notes.append(note(item))
        yield item


def stage(
    folder: StorePath,
    shard: int,
    items: Mapping[str, Sequence[ShardItem]],
    specs: Mapping[str, Output],
    attributes: SplitAttributes,
) -> Staged:
    """Write a shard's files below a folder, for `SplitWriter.adopt` in the process that holds the split.

    Nothing is locked and nothing read: any process may do it that sees the store.

    Args:
        folder: of this attempt alone, in the split's scratch folder. Who holds the split next sweeps what was not adopted.
        items: by output the utterances of the shard, in the order of rows.

    Raises:
        StoreError: the folder cannot be written.
    """
    return ShardFiles(lambda array: folder / array, attributes, folder).write(shard, items, specs)


def move_in(folder: StorePath, staged: Staged, homes: Homes) -> None:
    """Give staged files their places in the split.

    Raises:
        StoreError: a file is not there, or not as it was staged; nothing was moved then.
    """
    moves: list[tuple[StorePath, StorePath]] = []
    for name, entry in staged.entries.items():
        files = [(shard_file, name, entry)]
        if "affine" in entry:
            files.append((scales_file, f"{name}-affine", entry["affine"]))
        for file, array, written in files:
            source = file(folder / array, staged.shard)
            _check_size(source, written["size"])
            moves.append((source, file(homes(array), staged.shard)))
    for source, target in moves:
        move(source, target)


def _check_size(path: StorePath, expected: int) -> None:
    try:
        size = size_of(path)
    except FileNotFoundError:
        raise StoreError(f"{path} is not there: another run swept what was staged; make the shard again") from None
    if size != expected:
        raise StoreError(f"{path} should have {expected} bytes, and has {size}; make the shard again")
