"""Words in time: roughly, by attention, beside times that are known better.

Shapes: W words, N queries, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from encodeonce.evaluate.attention.capture import Attention
from encodeonce.evaluate.errors import EvaluationError


@dataclass(frozen=True, slots=True)
class Word:
    """A word and when it is said, in seconds from the utterance's beginning."""

    word: str
    start: float
    end: float

    @property
    def centre(self) -> float:
        """The middle of it, seconds."""
        return (self.start + self.end) / 2


def word_frames(attention: Attention) -> np.ndarray | None:
    """Which frames each written word goes back to, `[W, T]`, rows that sum to 1; None: text does not reach frames.

    A word looks at queries, and a query has looked at frames in the layers before: the product of the two maps, averaged
    over the text's layers. Rough: what queries tell each other is left out.
    """
    writing, layers = attention.writing, np.array(attention.layers)
    after = [] if writing is None else [n for n in range(len(writing.weights)) if (layers < n).any()]
    if writing is None or not after or not writing.words:
        return None
    rows = []
    for number in after:
        on_queries = writing.weights[number].mean(0)  # [W, N]
        read = attention.weights[layers < number].mean((0, 1))  # [N, T]
        rows.append(on_queries / on_queries.sum(1, keepdims=True) @ read)
    return np.mean(rows, 0)


def word_times(attention: Attention) -> list[Word]:
    """Rough times of the words that a Q-Former writes; empty where text does not reach frames, or has more words than frames.

    Words in their order share all frames, silence too; where queries tell neighbours apart no better than by their window, the
    words divide it among them.
    """
    rows = word_frames(attention)
    if rows is None or len(rows) > rows.shape[1]:
        return []
    words = attention.writing.words if attention.writing else ()
    cuts = monotone_cuts(rows) * attention.frame_seconds
    return [Word(word, float(a), float(b)) for word, a, b in zip(words, cuts[:-1], cuts[1:], strict=True)]


def monotone_cuts(scores: np.ndarray) -> np.ndarray:
    """Where to cut T frames into W pieces, one a word in order, by `scores` `[W, T]` >= 0.

    Each way to do it, a frame a word at least, weighs the product of its frames' scores; what is given is the mean over all
    ways (the forward-backward algorithm, Rabiner 1989).

    Returns:
        `[W + 1]` frames, 0 to T, fractions among them.
    """
    words, frames = scores.shape
    logs = np.log(scores.astype(np.float64).clip(1e-9))
    never = np.full(words, -np.inf)
    before, after = np.tile(never, (frames, 1)), np.tile(never, (frames, 1))  # [T, W]
    before[0, 0], after[-1, -1] = logs[0, 0], 0.0
    for frame in range(1, frames):
        came = np.concatenate((never[:1], before[frame - 1, :-1]))
        before[frame] = np.logaddexp(before[frame - 1], came) + logs[:, frame]
    for frame in range(frames - 2, -1, -1):
        follows = after[frame + 1] + logs[:, frame + 1]
        after[frame] = np.logaddexp(follows, np.concatenate((follows[1:], never[:1])))
    both = before + after
    shares = np.exp(both - both.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    return np.concatenate(([0.0], shares.sum(0).cumsum()))


def spread_evenly(words: Sequence[str], seconds: float) -> list[Word]:
    """Words over an utterance by their letters and a space each, as if all were said at one pace: what one knows without looking."""
    ends = np.cumsum([len(word) + 1 for word in words]) * (seconds / max(1, sum(len(word) + 1 for word in words)))
    return [Word(word, float(a), float(b)) for word, a, b in zip(words, [0.0, *ends[:-1]], ends, strict=True)]


def centre_errors(found: Sequence[Word], reference: Sequence[Word]) -> np.ndarray:
    """How far the middle of each word is from where it should be, `[W]` seconds.

    Raises:
        EvaluationError: they are not the same number of words.
    """
    if len(found) != len(reference):
        raise EvaluationError(
            f"{len(found)} words found, {len(reference)} in the reference: align the reference's own text"
        )
    return np.abs(np.array([a.centre - b.centre for a, b in zip(found, reference, strict=True)]))
