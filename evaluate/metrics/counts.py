"""Very many pairs of texts: normalised and counted, in several processes where that saves time."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass
from functools import cache
from itertools import repeat
from multiprocessing import get_context

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics.word_errors import count_edits, units_of
from encodeonce.evaluate.normalise import RAW, find_normaliser

CHUNK = 4096
PAIRS_A_PROCESS = 15_000
"""A process takes two seconds to start, in which so many pairs are counted."""

RATES = ("wer", "wer_raw", "cer", "cer_raw")
Pair = tuple[str, str]


@dataclass(frozen=True)
class Counts:
    """Pairs of texts, and what is between them.

    Attributes:
        texts: reference and hypothesis, normalised.
        edits: hits, substitutions, deletions and insertions of each pair, `[N, 4]`, by the rate of `RATES` that they make.
    """

    texts: list[Pair]
    edits: dict[str, np.ndarray]


def count_pairs(pairs: Sequence[Pair], language: str | None, processes: int | None = None) -> Counts:
    """Normalise and count references and hypotheses.

    Args:
        processes: at most so many; None: as many as there are cores. Few pairs are counted in this one.

    Raises:
        EvaluationError: no such language; or the processes cannot be started.
        StoreError: an optional library is missing; the message says how to install it.
    """
    find_normaliser(language)
    processes = min(processes or _cores(), -(-len(pairs) // PAIRS_A_PROCESS))
    chunks = [pairs[begin : begin + CHUNK] for begin in range(0, len(pairs), CHUNK)]
    done = list(map(_count, chunks, repeat(language)) if processes < 2 else _spread(chunks, language, processes))
    texts = [pair for some, _ in done for pair in some]
    edits = np.concatenate([np.zeros((0, 4, 4), np.int64), *(counted for _, counted in done)])
    return Counts(texts, {name: edits[:, number] for number, name in enumerate(RATES)})


def _spread(chunks: Sequence[Sequence[Pair]], language: str | None, processes: int) -> Iterator:
    try:
        with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
            yield from pool.map(_count, chunks, repeat(language))
    except BrokenProcessPool as error:
        raise EvaluationError(
            "a process that counts errors died: put what the script does under `if __name__ == '__main__':`, or count in one process"
        ) from error


_normaliser = cache(find_normaliser)


def _count(pairs: Sequence[Pair], language: str | None) -> tuple[list[Pair], np.ndarray]:
    """The normalised pairs, and their edits `[N, 4, 4]`: of each rate, of each kind."""
    normaliser = _normaliser(language)
    normalised = {text: normaliser(text) for text in {text for pair in pairs for text in pair}}
    found: dict[Pair, list[tuple[int, ...]]] = {}
    for pair in set(pairs):
        clean, raw = [normalised[text] for text in pair], [RAW(text) for text in pair]
        found[pair] = [
            astuple(count_edits(*(units_of(text, unit, way) for text in texts)))
            for unit in ("word", "character")
            for texts, way in ((clean, normaliser), (raw, RAW))
        ]
    counted = np.array([found[pair] for pair in pairs])
    return [(normalised[said], normalised[written]) for said, written in pairs], counted


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
