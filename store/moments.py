"""What frames say of each dimension, and codes of their codebooks: pure, and joined without loss.

Moments of blocks of frames are joined by the formula of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm
for computing sample variances", 1979), in float64.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

BLOCK_FRAMES = 256
"""Frames that are worked on at a time: few enough to stay in a processor's cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What `count` frames say of each dimension: arrays `[D]` float64. `squares` is the sum of squared deviations from the mean."""

    count: int
    mean: np.ndarray
    squares: np.ndarray
    minimum: np.ndarray
    maximum: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """The moments of frames `[T, D]`, T > 0."""
        single = values.astype(np.float32, copy=False)  # half precision has no fast minimum; float32 holds it exactly
        minimum, maximum = single.min(axis=0), single.max(axis=0)
        deviations = single.astype(np.float64)
        mean = deviations.mean(axis=0)
        deviations -= mean
        squares = np.einsum("td,td->d", deviations, deviations)
        return cls(len(values), mean, squares, minimum.astype(np.float64), maximum.astype(np.float64))

    def join(self, other: "Moments") -> "Moments":
        """The moments of the frames of both."""
        count = self.count + other.count
        apart = other.mean - self.mean
        return Moments(
            count,
            self.mean + apart * (other.count / count),
            self.squares + other.squares + apart**2 * (self.count * other.count / count),
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
        )

    @property
    def variance(self) -> np.ndarray:
        """Mean squared deviation `[D]` (over the count, not over one less)."""
        return self.squares / self.count

    @property
    def constant(self) -> list[int]:
        """The dimensions that never change."""
        return np.flatnonzero(self.minimum == self.maximum).tolist()


@dataclass(frozen=True, slots=True, eq=False)
class Usage:
    """How often each code is used: `counts` `[codebooks, codes]` int64, over `count` frames."""

    count: int
    counts: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Usage":
        """The usage of codes `[T, codebooks]`."""
        size = int(values.max()) + 1
        counts = [np.bincount(column, minlength=size) for column in values.T]
        return cls(len(values), np.stack(counts).astype(np.int64))

    def join(self, other: "Usage") -> "Usage":
        """The usage in the frames of both."""
        counts = np.zeros((len(self.counts), max(self.counts.shape[1], other.counts.shape[1])), np.int64)
        counts[:, : self.counts.shape[1]] += self.counts
        counts[:, : other.counts.shape[1]] += other.counts
        return Usage(self.count + other.count, counts)

    @property
    def used(self) -> np.ndarray:
        """How many codes of each codebook are used at all, `[codebooks]`."""
        return np.count_nonzero(self.counts, axis=1)

    @property
    def perplexity(self) -> np.ndarray:
        """2 to the entropy in bits of each codebook, `[codebooks]`: as many codes used evenly would be as hard to guess."""
        share = self.counts / self.counts.sum(axis=1, keepdims=True)
        bits = -np.sum(share * np.log2(share, out=np.zeros_like(share), where=share > 0), axis=1)
        return 2.0**bits


def measure(utterances: Iterable[np.ndarray], dtype: str) -> Moments | Usage:
    """The statistics of some utterances `[T, D]` of an output: of values, or of codes, which are uint16."""
    if dtype == "uint16":
        return join(Usage.of(codes) for codes in utterances)
    starts = ((values, first) for values in utterances for first in range(0, len(values), BLOCK_FRAMES))
    return join(Moments.of(values[first : first + BLOCK_FRAMES]) for values, first in starts)


def join(found: Iterable[Moments | Usage]) -> Moments | Usage:
    """The statistics of everything that some, all of one kind, were taken over."""
    some: Iterable[Any] = found
    return reduce(lambda ours, theirs: ours.join(theirs), some)
