"""What centres come to on frames: how far these are from them, how often each is the nearest."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from encodeonce.store import moments
from encodeonce.store.progress import Advance
from encodeonce.train.kmeans.first import different
from encodeonce.train.kmeans.minibatch import MiniBatch

FARTHEST_FRAMES = 8192
"""Frames that are kept for empty clusters."""


@dataclass(frozen=True, slots=True, eq=False)
class Usage:
    """`counts` `[K]` int64 of the frames that each centre is nearest to; `farthest` frames `[n, D]`, all different, the farthest first."""

    counts: np.ndarray
    inertia: float
    """Mean squared distance of a frame from its centre."""
    farthest: np.ndarray

    @property
    def empty(self) -> np.ndarray:
        """The numbers of the centres that are nearest to no frame."""
        return np.flatnonzero(self.counts == 0)

    @property
    def perplexity(self) -> float:
        """2 to the entropy of the units in bits."""
        return float(moments.Usage(int(self.counts.sum()), self.counts[None]).perplexity[0])


def measure(model: MiniBatch, batches: Iterable[np.ndarray], advance: Advance) -> Usage:
    """Assign the frames of mini-batches `[N, D]` to the centres of a model."""
    centres = model.centres
    counts, total = np.zeros(len(centres), np.int64), 0.0
    farthest, far = np.empty((0, centres.shape[1]), np.float32), np.empty(0, np.float32)
    for frames in batches:
        labels = model.nearest(frames)
        counts += np.bincount(labels, minlength=len(centres))
        apart = frames - centres[labels]
        distances = np.einsum("nd,nd->n", apart, apart)
        total += float(distances.sum(dtype=np.float64))
        near = distances <= far[-1] if len(far) == FARTHEST_FRAMES else np.zeros(len(frames), bool)
        candidates, how_far = np.concatenate([farthest, frames[~near]]), np.concatenate([far, distances[~near]])
        order = np.argsort(-how_far, kind="stable")[:FARTHEST_FRAMES]
        farthest, far = candidates[order], how_far[order]
        advance(len(frames))
    return Usage(counts, total / int(counts.sum()), farthest[different(farthest)])
