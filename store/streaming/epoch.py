"""The plan of an epoch: which utterances share a batch, in which order the batches come, and which rank gets which.

A pure function of its arguments, the same on every machine: randomness is the raw output of Philox, keyed by seed and
epoch, and every permutation is a stable sort of such numbers, so that no library's shuffle can change it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

TAIL = 64
"""The last batch has at least so many utterances, or the most that any has: enough to be split over as many ranks."""

WINDOW = 8192
SHARD_WINDOW = 32


@dataclass(frozen=True, slots=True)
class Epoch:
    """The global sequence of batches: batch k holds the utterances `order[starts[k]:ends[k]]`."""

    order: np.ndarray
    """Utterances, `[N]`, batch by batch."""
    starts: np.ndarray
    """`[batches]` int64, in the sequence's order."""
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def batch(self, number: int) -> np.ndarray:
        """The utterances of a batch, `[B]`, shortest first."""
        return self.order[self.starts[number] : self.ends[number]]

    def padding(self, lengths: np.ndarray) -> float:
        """The share of all padded frames that is padding, for the lengths `[N]` it was planned with."""
        longest = lengths[self.order[self.ends - 1]].astype(np.int64)
        padded = int((longest * (self.ends - self.starts)).sum())
        return 1 - int(lengths[self.order].sum(dtype=np.int64)) / padded if padded else 0.0


def random_bits(count: int, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """`count` random uint64, a function of the three numbers alone; purposes are independent of each other."""
    return np.random.Philox(key=np.array([seed, epoch], "u8"), counter=np.array([0, 0, 0, purpose], "u8")).random_raw(
        count
    )


def plan_epoch(
    lengths: np.ndarray,
    *,
    seed: int,
    epoch: int,
    frames_per_batch: int,
    window: int = WINDOW,
    max_batch: int | None = None,
    shards: np.ndarray | None = None,
    shard_window: int = SHARD_WINDOW,
    shuffle: bool = True,
) -> Epoch:
    """Plan an epoch: permute, group by length inside windows, cut by padded frames, permute the batches.

    Args:
        lengths: frames of each utterance, `[N]`, 1 to frames_per_batch.
        frames_per_batch: what a batch holds at most, padding included: utterances times the longest one's frames.
        window: utterances, neighbours in the permutation, among which those of like length are grouped.
        max_batch: utterances of a batch at most.
        shards: the shard of each utterance, `[N]`; then shards are permuted, and everything else happens inside windows of
            `shard_window` of them: what is read at a time lies in few shards.
        shuffle: False leaves out both permutations; batches then come in the order of the utterances' windows.
    """
    count = len(lengths)
    if not count:
        nothing = np.empty(0, np.int64)
        return Epoch(nothing, nothing, nothing)
    keys = random_bits(count, seed, epoch, 0) if shuffle else np.arange(count, dtype="u8")
    order = np.argsort(keys, kind="stable")
    region_edges = np.array([0, count])
    if shards is not None and shuffle:
        order, region_edges = _by_shards(order, shards, shard_window, seed, epoch)
    edges = np.unique(
        np.concatenate([region_edges, *(np.arange(first, last, window) for first, last in pairwise(region_edges))])
    )
    sizes = np.diff(edges)
    ordered = lengths[order].astype(np.int64)
    # Stable, so that utterances of one length stay in random order. The lengths of a window sort within its own range.
    by_length = np.argsort(np.repeat(np.arange(len(sizes)), sizes) * (int(ordered.max()) + 1) + ordered, kind="stable")
    order, ordered = order[by_length], ordered[by_length]
    starts, ends = _cut(ordered, edges, frames_per_batch, max_batch or count)
    if shuffle:
        region = np.searchsorted(region_edges, starts, side="right")
        mixed = np.lexsort((random_bits(len(starts), seed, epoch, 1), region))
        enough = np.flatnonzero((ends - starts)[mixed] >= min(TAIL, int((ends - starts).max())))[-1]
        mixed = np.concatenate([np.delete(mixed, enough), mixed[enough : enough + 1]])
        starts, ends = starts[mixed], ends[mixed]
    return Epoch(order, starts, ends)


def _by_shards(
    order: np.ndarray, shards: np.ndarray, shard_window: int, seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Utterances by windows of randomly ordered shards, shuffled inside; and where each window begins and ends."""
    numbers, inverse = np.unique(shards, return_inverse=True)
    rank = np.empty(len(numbers), np.int64)
    rank[np.argsort(random_bits(len(numbers), seed, epoch, 2), kind="stable")] = np.arange(len(numbers))
    region = (rank // shard_window)[inverse[order]]
    order = order[np.argsort(region, kind="stable")]
    return order, np.concatenate([[0], np.cumsum(np.bincount(region))])


def _cut(lengths: np.ndarray, edges: np.ndarray, most_frames: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut ascending runs of lengths into the largest batches that hold, all runs in step.

    Run r is `lengths[edges[r]:edges[r + 1]]`; a batch of k utterances from s takes `k * lengths[s + k - 1]` frames, which
    grows with k, so its size is found by bisection.
    """
    position, stop = edges[:-1].copy(), edges[1:]
    starts, ends = [], []
    while len(position):
        least, largest = np.ones_like(position), np.minimum(stop - position, most)
        largest = np.maximum(1, np.minimum(largest, most_frames // lengths[position]))
        while (least < largest).any():
            middle = (least + largest + 1) // 2
            fits = middle * lengths[position + middle - 1] <= most_frames
            least, largest = np.where(fits, middle, least), np.where(fits, largest, middle - 1)
        starts.append(position)
        ends.append(position + least)
        left = ends[-1] < stop
        position, stop = ends[-1][left], stop[left]
    cut = np.concatenate(starts)
    in_order = np.argsort(cut, kind="stable")
    return cut[in_order], np.concatenate(ends)[in_order]


@dataclass(frozen=True, slots=True)
class Step:
    """What a rank gets in a step: the utterances `first` to `last` of a batch (None: to its end)."""

    batch: int
    first: int
    last: int | None
    consumed: int
    """Batches that all ranks have taken together after this step."""


def steps(sizes: np.ndarray, taken: int, rank: int, world_size: int, drop_last: bool = False) -> Iterator[Step]:
    """What one of W ranks does with the rest of a sequence of batches; every rank makes as many steps.

    At each step the W ranks take the next W batches. At the tail fewer than W may be left; these are split, so that every
    rank gets one (where they hold fewer than W utterances, some are given to several ranks), or dropped.

    Args:
        sizes: utterances of each batch, `[M]`.
        taken: how many batches of the sequence were taken already.
    """
    whole, rest = divmod(len(sizes) - taken, world_size)
    for first in range(taken, taken + whole * world_size, world_size):
        consumed = first + world_size
        # Nothing comes after the last step: what is dropped counts as taken.
        consumed = len(sizes) if drop_last and len(sizes) - consumed < world_size else consumed
        yield Step(first + rank, 0, None, consumed)
    if rest and not drop_last:
        tail = len(sizes) - rest
        batch, first, last = split_tail(sizes[tail:].tolist(), world_size)[rank]
        yield Step(tail + batch, first, last, len(sizes))


def count_steps(batches: int, world_size: int, drop_last: bool = False) -> int:
    """Steps that every rank makes for so many batches."""
    return batches // world_size if drop_last else -(-batches // world_size)


def split_tail(sizes: list[int], pieces: int) -> list[tuple[int, int, int]]:
    """Split batches into as many pieces as there are ranks, as evenly as can be: (batch, first, last) in their order."""
    parts = [1] * len(sizes)
    for _ in range(pieces - len(sizes)):
        # One more piece for the batch whose pieces are largest; once every piece is one utterance, they are repeated.
        widest = max(range(len(sizes)), key=lambda i: (sizes[i] / parts[i], -i))
        parts[widest] += 1
    cut = []
    for batch, (size, count) in enumerate(zip(sizes, parts, strict=True)):
        for i in range(count):
            first = i * size // count
            cut.append((batch, first, max(first + 1, (i + 1) * size // count)))
    return cut
