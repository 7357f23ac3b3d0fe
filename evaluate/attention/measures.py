"""What a map of attention comes to in numbers: how sharp it is, what each query reads, and what nobody reads.

Shapes: L layers, N queries, T frames.
"""

from dataclasses import dataclass

import numpy as np
from encodeonce.evaluate.attention.capture import Attention


@dataclass(frozen=True)
class Reading:
    """Which frames each of N queries reads, in seconds from the utterance's beginning; each `[N]`, spans `[N, 2]`.

    Attributes:
        centre: the mean of the frames' times, weighed by attention.
        peak: the middle of the frame with most of it.
        half: between which times half of it lies, a quarter before and a quarter after.
        most: between which times 90 % of it lies, 5 % before and 5 % after.
    """

    centre: np.ndarray
    peak: np.ndarray
    half: np.ndarray
    most: np.ndarray


@dataclass(frozen=True)
class Entropy:
    """How evenly queries look, by layer and head.

    Attributes:
        layers: `[L]` their numbers.
        nats: `[L, heads]`: the mean over queries of `-sum p ln p`.
        share: `[L, heads]`: the mean over queries of that entropy over ln of the frames that the query may see; 1 is even.
    """

    layers: tuple[int, ...]
    nats: np.ndarray
    share: np.ndarray


def row_entropy(weights: np.ndarray) -> np.ndarray:
    """Entropy of rows `[..., T]` that sum to 1, in nats: `[...]`."""
    logs = np.log(weights, out=np.zeros_like(weights, np.float64), where=weights > 0)
    return -(weights * logs).sum(-1)


def entropy(attention: Attention) -> Entropy:
    """The entropy of an utterance's attention, by layer and head."""
    nats = row_entropy(attention.weights)  # [L, heads, N]
    even = np.log(np.diff(attention.seen)[:, 0])  # [N]
    choice = even > 0  # a query that may see one frame alone has nothing to choose
    share = (nats[..., choice] / even[choice]).mean(2) if choice.any() else np.full(nats.shape[:2], np.nan)
    return Entropy(attention.layers, nats.mean(2), share)


def reading(weights: np.ndarray, frame_seconds: float) -> Reading:
    """Which frames queries read, by rows `[N, T]` that sum to 1."""
    edges = np.arange(weights.shape[1] + 1) * frame_seconds
    middles = (edges[1:] + edges[:-1]) / 2
    reached = np.pad(weights.cumsum(1, np.float64), ((0, 0), (1, 0)))  # [N, T + 1]
    reached /= reached[:, -1:]

    def between(low: float, high: float) -> np.ndarray:
        return np.array([np.interp((low, high), row, edges) for row in reached]).reshape(-1, 2)

    peak = middles[weights.argmax(1)]
    return Reading(weights @ middles, peak, between(0.25, 0.75), between(0.05, 0.95))


def evenness(attention: Attention, weights: np.ndarray) -> np.ndarray:
    """Rows `[..., N, T]` in multiples of an even look at all that each query may see."""
    return weights * np.diff(attention.seen)


def coverage(attention: Attention) -> np.ndarray:
    """`[L]`: the share of frames that some query looks at more than evenly, heads averaged."""
    return (evenness(attention, attention.weights.mean(1)) > 1 + 1e-6).any(1).mean(1)


def diagonality(attention: Attention) -> np.ndarray:
    """`[L, heads]`: Spearman's correlation of the number of a query and the centre of what it reads.

    1: later queries read later frames. Windows bring that about by themselves; nan: fewer than two queries, or all centres one.
    """
    centres = attention.weights @ attention.times  # [L, heads, N]
    order = np.arange(centres.shape[2])
    return np.array([[spearman(order, row) for row in heads] for heads in centres])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of the ranks of `[N]` and `[N]`, equal values sharing theirs; nan where one is constant."""
    ranks = np.array([_ranks(a), _ranks(b)])
    spread = ranks.std(1)
    return float(np.corrcoef(ranks)[0, 1]) if len(a) > 1 and spread.min() > 0 else float("nan")


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[place]
