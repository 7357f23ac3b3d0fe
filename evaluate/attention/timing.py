"""How well attention tells when words are said: against times that are known, beside words that are spread evenly."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from encodeonce.evaluate.attention.alignment import Word, centre_errors, spread_evenly, word_times
from encodeonce.evaluate.attention.capture import Attention
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics.word_errors import align
from encodeonce.evaluate.report.extras import Miss, TimedWords, WordCentres

LEEWAY_SECONDS = 0.5
"""That words may end after their utterance: frames and aligners round."""
UNWRITTEN = "this adapter's queries write no text (objective stg), so that attention tells no word's time"


@dataclass(frozen=True)
class Timing:
    """How far the middles of words are from where they are known to be; of W words that the text and the known times share.

    Attributes:
        said: words of the text.
        attention: `[W]` seconds, of the times that attention tells.
        evenly: `[W]` seconds, of the words spread over the utterance by their letters.
    """

    said: int
    attention: np.ndarray
    evenly: np.ndarray


def check_times(words: Sequence[Word], seconds: float) -> None:
    """Refuse times that are not of an utterance of so many seconds.

    Raises:
        EvaluationError: they go on after its end, as those of a whole recording do.
    """
    last = max((word.end for word in words), default=0.0)
    if last > seconds + LEEWAY_SECONDS:
        raise EvaluationError(
            f"its word times go on to {last:.1f} s, and it ends at {seconds:.1f} s; give seconds from the utterance's beginning"
        )


def time_words(attention: Attention, text: str, known: Sequence[Word]) -> Timing:
    """Hold the times that attention tells of a text's words against known ones.

    Words are compared that the fewest edits (Levenshtein) leave the same in both, whatever their case and punctuation.

    Args:
        attention: of a Q-Former that was made to write `text`.

    Raises:
        EvaluationError: attention tells no times, or no word is in both.
    """
    words, found = text.split(), word_times(attention)
    written = () if attention.writing is None else attention.writing.words
    if attention.writing is not None and len(written) < len(words):
        raise EvaluationError(f"its text has {len(words)} words, and the Q-Former has room for {len(written)} of them")
    if not found:
        raise EvaluationError(_why_untold(attention))
    pairs = _shared([word.word for word in known], words)
    if not pairs:
        raise EvaluationError("no word of its text is in its word times")
    reference = [known[there] for there, _ in pairs]
    told = (found, spread_evenly(words, attention.seconds))
    return Timing(len(words), *(centre_errors([times[here] for _, here in pairs], reference) for times in told))


def summed_up(source: str, timings: Mapping[str, Timing], left_out: Mapping[str, str]) -> WordCentres:
    """What a report says of the timings of utterances, by their ids."""
    rows = [_row(name, [timing]) for name, timing in timings.items()]
    return WordCentres(source, _row(None, list(timings.values())) if rows else None, rows, left_out)


def _row(name: str | None, timings: Sequence[Timing]) -> TimedWords:
    by_attention, evenly = (np.concatenate([getattr(one, kind) for one in timings]) for kind in ("attention", "evenly"))
    return TimedWords(name, len(evenly), sum(one.said for one in timings), _miss(by_attention), _miss(evenly))


def _miss(errors: np.ndarray) -> Miss:
    return Miss(float(errors.mean()), float(np.median(errors)))


def _why_untold(attention: Attention) -> str:
    if attention.writing is None:
        return UNWRITTEN
    if len(attention.writing.words) > attention.weights.shape[3]:
        return "its text has more words than frames"
    return "no layer of the text comes after one that reads frames, so that attention tells no word's time"


def _shared(known: Sequence[str], words: Sequence[str]) -> list[tuple[int, int]]:
    """Which known word is which of the text, in their order."""
    pairs, there, here = [], 0, 0
    for run in align(" ".join(map(_bare, known)), " ".join(map(_bare, words))):
        if run.kind == "hit":
            pairs += [(there + number, here + number) for number in range(len(run.reference))]
        there, here = there + len(run.reference), here + len(run.hypothesis)
    return pairs


def _bare(word: str) -> str:
    """A word as it is compared: no case, no punctuation, no space; what is punctuation alone stays."""
    return re.sub(r"[\W_]+", "", word.casefold()) or re.sub(r"\s+", "", word) or "-"
