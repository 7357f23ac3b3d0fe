"""Deriving an output on one split, shard by shard, each committed as extraction commits it.

A thread makes a shard, one utterance after the other: computed, written and hashed while it is in the processor's cache.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from encodeonce.store.derive.chain import Function, function_of
from encodeonce.store.derive.request import Derivation
from encodeonce.store.derive.sources import SourceSplit, StoredValues, values_of
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.format import ShardItem
from encodeonce.store.layout import SplitPaths, read_attributes
from encodeonce.store.noise import Ratio
from encodeonce.store.objects import ObjectPath, StorePath
from encodeonce.store.plan import Place
from encodeonce.store.progress import Advance, silent
from encodeonce.store.quantize import NotStorableError, keep
from encodeonce.store.table import DESCRIPTIVE, TRANSLATION, record_of
from encodeonce.store.walk import by_shard
from encodeonce.store.writer import SplitWriter

MOST_THREADS = 8
MOST_FAR = 3
"""Shards at a time in an object store: there all that is read of one, and written, is in memory."""


@dataclass(frozen=True, slots=True)
class DeriveReport:
    """What stands on a split now; `derived` of its utterances were derived by this call, the others stood."""

    split: str
    path: str
    output: str
    utterances: int
    derived: int
    frames: int
    bytes: int
    seconds: float


def threads_for(path: StorePath) -> int:
    """Threads to derive a split with: twice as many as there are cores, because some of them wait for the disk."""
    return min(MOST_FAR if isinstance(path, ObjectPath) else MOST_THREADS, 2 * (os.cpu_count() or 1))


def derive_split(
    derivation: Derivation, path: StorePath, threads: int | None = None, advance: Advance = silent
) -> DeriveReport:
    """Bring a split's derived output up to date: every shard that lacks it gets it, and readers see it once all have it.

    Nothing of the other outputs is written. A killed run is gone on with; where nothing lacks, nothing is loaded.

    Raises:
        DamagedError: a source has another size than its record says, or its index is damaged. (Other damage stays visible:
            the shard's record names the source's checksum, and repair sets the shard aside with all its outputs.)
        StoreError: another process writes the split, or a value does not fit the dtype.
    """
    begun = time.perf_counter()
    output = derivation.output
    with SplitWriter(path, read_attributes(SplitPaths(path).group)) as writer:
        listed = derivation.feature_set.outputs
        writer.publish(listed)  # what a killed run committed and had not shown yet
        for shard, names in writer.superseded().items():
            writer.remove(shard, names)
        writer.publish(listed)
        holding = [record for record in writer.commits.values() if record.utterances]
        lacking = {record.shard for record in holding if output.name not in record.outputs}
        if lacking:
            _Deriving(writer, derivation, threads or threads_for(path), advance).run(lacking)
        writer.publish(listed)
        entries = [writer.commits[record.shard].outputs[output.name] for record in holding]
        return DeriveReport(
            writer.attributes.split,
            str(path),
            output.name,
            sum(record.utterances for record in holding),
            sum(record.utterances for record in holding if record.shard in lacking),
            sum(record.frames for record in holding),
            sum(entry["size"] + entry.get("affine", {}).get("size", 0) for entry in entries),
            round(time.perf_counter() - begun, 3),
        )


class _Deriving:
    """One call on a split that is held by `writer`."""

    def __init__(self, writer: SplitWriter, derivation: Derivation, threads: int, advance: Advance) -> None:
        self.writer, self.output, self.threads, self.advance = writer, derivation.output, threads, advance
        self.function: Function = function_of(derivation.feature_set, derivation.output)
        self.sources = SourceSplit(writer.paths.root, derivation.sources)
        self.places = writer.places
        self.table = self.sources.split.table  # read once, before threads ask for it
        self.ended = False

    def run(self, lacking: set[int]) -> None:
        """Make the shards. The first error ends it; shards committed before it stand."""
        split = self.sources.split
        shards = {int(split.shards[indices[0]]): indices for indices in by_shard(split)}
        nothing = np.array([], np.int64)
        making: list[Future[None]] = []
        with ThreadPoolExecutor(self.threads, "derive") as pool:
            try:
                making.extend(pool.submit(self._make, shard, shards.get(shard, nothing)) for shard in sorted(lacking))
                wait(making, return_when=FIRST_EXCEPTION)
                for made in making:
                    if made.done():
                        made.result()
            except BaseException:
                self.ended = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _make(self, shard: int, indices: np.ndarray) -> None:
        """Make a shard, which has to hold the utterances that its record counts, and commit it."""
        commit, name = self.writer.commits[shard], self.output.name
        counted = {place.id for place in self.writer.present(shard, self.places[shard])}
        shown = {self.sources.split.ids[int(i)].as_py() for i in indices}
        if counted != shown:
            raise DamagedError(
                f"{self.writer.paths.table} shows {len(shown)} utterances of shard {shard}, and its record counts "
                f"{len(counted)}; take the table away, and the next run makes it again"
            )
        noise: list[Ratio] = []
        items = self._items(indices, list(self.sources.stored(indices)), noise)
        try:
            self.writer.commit(
                shard, commit.plan, commit.absent, {name: items}, {name: self.output}, {name: noise}, commit.made
            )
        except _NotOfTheShardError as error:
            raise error.cause from None
        self.sources.split.close()  # what is mapped counts as this process's memory

    def _items(
        self, indices: np.ndarray, stored: Sequence[tuple[StoredValues, ...]], noise: list[Ratio]
    ) -> Iterator[ShardItem]:
        """The utterances of a shard as they will be stored, all in the same memory, one after the other."""
        attributes = self.writer.attributes
        rows = self.table.slice(int(indices[0]), len(indices)).to_pylist()
        longest = max(row["frames"] for row in rows)
        room = np.empty((longest, self.output.width), np.dtype(self.output.dtype).newbyteorder("<"))
        for row, values in zip(rows, stored, strict=True):
            if self.ended:
                raise StoreError("another shard could not be made")
            try:
                frames = self.function([values_of(*pair) for pair in values])
                kept, affine, ratio = keep(frames, self.output, room[: row["frames"]])
                self.advance(len(kept))
            except (NotStorableError, StoreError) as error:
                raise StoreError(
                    f"{self.writer.paths.root}: utterance {row['id']!r}: {error}; every utterance has every output, so "
                    f"{self.output.name} is not made"
                ) from error
            except OSError as error:
                raise _NotOfTheShardError(error) from error
            if ratio is not None:
                noise.append(ratio)
            record = stored_record(row, attributes.sample_rate)
            yield ShardItem(row["id"], row["row"] % attributes.shard_frames, kept, record, affine)


class _NotOfTheShardError(Exception):
    """An error of the operating system while values are made: who writes them would take it for one of the shard's file."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def stored_record(row: Mapping[str, Any], sample_rate: int) -> dict[str, Any]:
    """The record of an utterance (`table.record_of`) from its row of utterances.parquet."""
    said = {name: row[name] for name in DESCRIPTIVE if name != "metadata"}
    named = {name.removeprefix(TRANSLATION): text for name, text in row.items() if name.startswith(TRANSLATION)}
    said["translations"] = {language: text for language, text in named.items() if text is not None}
    said["metadata"] = json.loads(row["metadata"] or "{}")
    place = Place(row["id"], row["shard"], row["row"], row["frames"], row["samples"])
    return record_of(place, row["audio_sha256"], sample_rate, said)
