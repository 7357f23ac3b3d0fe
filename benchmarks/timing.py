"""Running a system over batches: built once, proved right before it is timed, timed in turn with the limits of the machine."""

import gc
import mmap
import os
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from peers import System, view
from peers.limits import memmap, preadv
from synthetic import Corpus

Batches = Sequence[Sequence[int]]


@dataclass
class Result:
    """What one system gave; ratios are taken within a round, and the medians of the rounds are shown."""

    system: str
    missing: list[str] = field(default_factory=list)
    error: str | None = None
    build_seconds: float | None = None
    megabytes_per_second: float | None = None
    """Of the utterances' own values, padding not counted."""
    of_memmap: float | None = None
    of_preadv: float | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)
    cold_megabytes_per_second: float | None = None
    cold_of_memmap: float | None = None
    left_in_cache: float | None = None
    """The share of the pages that dropping the files from the page cache left there, looked at in places; None: not known."""


class Bench:
    """The corpus, the random batches and the buffer that every system fills."""

    def __init__(self, corpus: Corpus, folder: Path, batches: Batches, frames_per_batch: int) -> None:
        self.corpus, self.folder, self.batches, self.frames_per_batch = corpus, folder, batches, frames_per_batch
        self.buffer = np.zeros((frames_per_batch, corpus.width), np.float16)
        self._sums = [zlib.crc32(corpus[i].data) for i in range(len(corpus))]

    def folder_of(self, system: System) -> Path:
        """Where a system's files lie."""
        return self.folder / system.folder

    def build(self, system: System) -> float | None:
        """Write a system's files, unless they stand; the seconds that took."""
        folder = self.folder_of(system)
        done = folder.with_name(f"{folder.name}.built")
        if done.exists():
            return None
        folder.mkdir(parents=True, exist_ok=True)
        begun = time.perf_counter()
        system.build(self.corpus, folder)
        os.sync()
        done.touch()
        return time.perf_counter() - begun

    def run(self, system: System) -> tuple[Callable[[Batches], float], Batches]:
        """Open a system and prove that it is right; how to time it, and the batches it gives."""
        if system.random:
            fill = system.random(self.corpus, self.folder_of(system))
            for batch in self.batches:
                out = self._room(batch)
                out[:] = 1
                fill(batch, out)
                if system.reads:
                    self._check(batch, out)
            return lambda batches: self._time(fill(batch, self._room(batch)) for batch in batches), self.batches
        assert system.sequence is not None
        epoch = system.sequence(self.corpus, self.folder_of(system), self.frames_per_batch)
        given: list[Sequence[int]] = []
        for batch, out in epoch(self.buffer):
            self._check(batch, out)
            given.append(list(batch))
        if sorted(i for batch in given for i in batch) != list(range(len(self.corpus))):
            raise AssertionError(f"{system.name} did not give every utterance once")
        return lambda batches: self._time(epoch(self.buffer)), given

    def _room(self, batch: Sequence[int]) -> np.ndarray:
        return view(self.buffer, len(batch), int(self.corpus.frames[batch].max()))

    def _check(self, batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            frames = int(self.corpus.frames[i])
            if zlib.crc32(slot[:frames].data) != self._sums[i] or slot[frames:].any():
                raise AssertionError(f"{self.corpus.name(i)} came with other values")

    @staticmethod
    def _time(work: Iterable[Any]) -> float:
        begun = time.perf_counter()
        for _ in work:
            pass
        return time.perf_counter() - begun

    def warm(self, system: System, rounds: int, result: Result) -> None:
        """Rounds of memmap, preadv and the system in turn, over the same batches, everything in the page cache."""
        run, batches = self.run(system)
        limits = [limit(self.corpus, self.folder) for limit in (memmap, preadv)]

        def limit_seconds(number: int) -> float:
            return self._time(limits[number](batch, self._room(batch)) for batch in batches)

        limit_seconds(0), limit_seconds(1)
        for _ in range(rounds):
            mapped, read, own = limit_seconds(0), limit_seconds(1), run(batches)
            result.rounds.append({"memmap": mapped, "preadv": read, "system": own})
        result.of_memmap = _median(r["memmap"] / r["system"] for r in result.rounds)
        result.of_preadv = _median(r["preadv"] / r["system"] for r in result.rounds)
        result.megabytes_per_second = self.corpus.bytes / 1e6 / _median(r["system"] for r in result.rounds)

    def cold(self, system: System, rounds: int, result: Result) -> None:
        """Rounds of memmap and the system in turn, each opened anew with its files dropped from the page cache."""
        own, ratios, left = [], [], []
        for _ in range(rounds):
            gc.collect()  # what is mapped cannot be dropped
            evict([self.corpus.path], self.corpus.values)
            fill = memmap(self.corpus, self.folder)
            mapped = self._time(fill(batch, self._room(batch)) for batch in self.batches)
            files = [path for path in self.folder_of(system).rglob("*") if path.is_file()]
            evict(files, self.corpus.values)
            left.append(cached_share(files))
            if system.random:
                begun = time.perf_counter()
                fill = system.random(self.corpus, self.folder_of(system))
                own.append(time.perf_counter() - begun + self._time(fill(b, self._room(b)) for b in self.batches))
            else:
                assert system.sequence is not None
                begun = time.perf_counter()
                epoch = system.sequence(self.corpus, self.folder_of(system), self.frames_per_batch)
                own.append(time.perf_counter() - begun + self._time(epoch(self.buffer)))
            ratios.append(mapped / own[-1])
            fill = epoch = None
        result.cold_of_memmap = _median(ratios)
        result.cold_megabytes_per_second = self.corpus.bytes / 1e6 / _median(own)
        known = [share for share in left if share is not None]
        result.left_in_cache = max(known) if known else None


def evict(files: Sequence[Path], mapped: np.ndarray | None = None) -> None:
    """Drop files from the page cache, as far as the machine does that."""
    if mapped is not None:
        mapped._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined] (numpy.memmap's own)
    os.sync()
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(files: Sequence[Path]) -> float | None:
    """The share of pages in the page cache, looked at in 8 places of up to 64 files of 1 MB or more; None: one cannot look."""
    large = [path for path in sorted(files) if path.stat().st_size > 1 << 20]
    hits, places, byte = 0, 0, bytearray(1)
    for path in large[:: max(1, len(large) // 64)]:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # looking must not read ahead
            for place in np.linspace(0, path.stat().st_size - 1, 8, dtype=int).tolist():
                places += 1
                try:
                    hits += os.preadv(file.fileno(), [byte], place, os.RWF_NOWAIT)
                except BlockingIOError:
                    pass
                except OSError:
                    return None
    return hits / places if places else None


def _median(values: Iterable[float]) -> float:
    return statistics.median(list(values))
