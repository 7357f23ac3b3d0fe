"""Deriving an output on one split, shard by shard, each committed as extraction commits it.

Threads compute utterances while those before are hashed and written; three shards of the output are in memory at most.
"""

import json
import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from encodeonce.store.derive.chain import Function, function_of
from encodeonce.store.derive.request import Derivation
from encodeonce.store.derive.sources import SourceSplit, StoredValues, values_of
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.format import ShardItem
from encodeonce.store.layout import SplitPaths, read_attributes
from encodeonce.store.objects import StorePath
from encodeonce.store.plan import Place
from encodeonce.store.progress import Advance, silent
from encodeonce.store.quantize import NotStorableError, keep
from encodeonce.store.table import DESCRIPTIVE, TRANSLATION, record_of
from encodeonce.store.walk import by_shard
from encodeonce.store.writer import SplitWriter

MOST_THREADS = 8
WRITERS = 2


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


def threads_here() -> int:
    """As many threads as there are cores, up to eight."""
    return min(MOST_THREADS, os.cpu_count() or 1)


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
            _Deriving(writer, derivation, threads or threads_here(), advance).run(lacking)
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


Made = tuple[ShardItem, float | None]
"""An utterance as it will be stored, and its signal-to-noise ratio in dB."""


class _Coming(Sequence[Any]):
    """A part of each of the utterances that threads are making: asking for one waits for it."""

    def __init__(self, made: Sequence[Future[Made]], part: int) -> None:
        self._made, self._part = made, part

    def __len__(self) -> int:
        return len(self._made)

    def __getitem__(self, index: Any) -> Any:
        return self._made[index].result()[self._part]


class _Deriving:
    """One call on a split that is held by `writer`."""

    def __init__(self, writer: SplitWriter, derivation: Derivation, threads: int, advance: Advance) -> None:
        self.writer, self.output, self.threads, self.advance = writer, derivation.output, threads, advance
        self.function: Function = function_of(derivation.feature_set, derivation.output)
        self.sources = SourceSplit(writer.paths.root, derivation.sources)
        self.places = writer.places

    def run(self, lacking: set[int]) -> None:
        """Make the shards in order. The first error ends it; shards committed before it stand."""
        split = self.sources.split
        shards = {int(split.shards[indices[0]]): indices for indices in by_shard(split)}
        with ThreadPoolExecutor(self.threads, "derive") as pool, ThreadPoolExecutor(WRITERS, "write") as writers:
            try:
                writing: deque[Future[None]] = deque()
                for shard in sorted(lacking):
                    indices = self._checked(shard, shards.get(shard, np.array([], np.int64)))
                    made = self._begin(indices, pool)
                    while len(writing) >= WRITERS:
                        writing.popleft().result()
                        split.close()  # what is mapped counts as this process's memory
                    writing.append(writers.submit(self._commit, shard, made))
                    del made
                while writing:
                    writing.popleft().result()
            except BaseException:
                for executor in (pool, writers):
                    executor.shutdown(wait=False, cancel_futures=True)
                raise

    def _checked(self, shard: int, indices: np.ndarray) -> np.ndarray:
        """The utterances of a shard by position, which have to be those that its record counts."""
        counted = {place.id for place in self.writer.present(shard, self.places[shard])}
        shown = {self.sources.split.ids[int(i)].as_py() for i in indices}
        if counted != shown:
            raise DamagedError(
                f"{self.writer.paths.table} shows {len(shown)} utterances of shard {shard}, and its record counts "
                f"{len(counted)}; take the table away, and the next run makes it again"
            )
        return indices

    def _begin(self, indices: np.ndarray, pool: ThreadPoolExecutor) -> list[Future[Made]]:
        """Let threads make the utterances of a shard, in the order of their rows."""
        rows = self.sources.split.table.slice(int(indices[0]), len(indices)).to_pylist()
        return [pool.submit(self._item, *pair) for pair in zip(rows, self.sources.stored(indices), strict=True)]

    def _item(self, row: dict[str, Any], stored: Sequence[StoredValues]) -> Made:
        attributes = self.writer.attributes
        try:
            kept, affine, noise = keep(self.function([values_of(*pair) for pair in stored]), self.output)
        except (NotStorableError, StoreError) as error:
            raise StoreError(
                f"{self.writer.paths.root}: utterance {row['id']!r}: {error}; every utterance has every output, so "
                f"{self.output.name} is not made"
            ) from error
        self.advance(len(kept))
        record = stored_record(row, attributes.sample_rate)
        return ShardItem(row["id"], row["row"] % attributes.shard_frames, kept, record, affine), noise

    def _commit(self, shard: int, made: list[Future[Made]]) -> None:
        commit, name = self.writer.commits[shard], self.output.name
        noise = {} if self.output.dtype == "uint16" else {name: _Coming(made, 1)}
        items, specs = {name: _Coming(made, 0)}, {name: self.output}
        self.writer.commit(shard, commit.plan, commit.absent, items, specs, noise, commit.made)


def stored_record(row: Mapping[str, Any], sample_rate: int) -> dict[str, Any]:
    """The record of an utterance (`table.record_of`) from its row of utterances.parquet."""
    said = {name: row[name] for name in DESCRIPTIVE if name != "metadata"}
    named = {name.removeprefix(TRANSLATION): text for name, text in row.items() if name.startswith(TRANSLATION)}
    said["translations"] = {language: text for language, text in named.items() if text is not None}
    said["metadata"] = json.loads(row["metadata"] or "{}")
    place = Place(row["id"], row["shard"], row["row"], row["frames"], row["samples"])
    return record_of(place, row["audio_sha256"], sample_rate, said)
