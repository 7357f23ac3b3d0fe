"""Numbers and names as a reader is shown them."""

import math
from collections.abc import Sequence

from encodeonce.evaluate.evaluation import Score, Unit
from encodeonce.evaluate.report.document import Cell

NAMES = {
    "wer": "WER",
    "wer_raw": "WER, raw text",
    "wer_caseless": "WER, lower case",
    "cer": "CER",
    "cer_raw": "CER, raw text",
    "original_wer": "WER, original audio",
    "original_wer_raw": "WER, raw text, original audio",
    "original_wer_caseless": "WER, lower case, original audio",
    "original_cer": "CER, original audio",
    "ser": "Sentence error rate",
    "ser_raw": "Sentence error rate, raw text",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rtf": "Real-time factor",
    "rtfx": "RTFx",
    "flagged": "Flagged",
    "normaliser": "A normaliser of the language",
    "id": "Utterance",
    "matching_accuracy_hard": "Matching accuracy, nearest wrong text",
    "outside": "Hypotheses that are no label of the references",
    "not_drawn": "Left out: more than were asked for",
    "too_long": "Left out: text too long for the model",
    "without_text": "Left out: no text",
    "f1_macro": "F1, macro",
    "f1_micro": "F1, micro",
}
"""Of scores and details; others are their own name with spaces, and `bertscore` as its authors write it."""


NONE = "\u2013"
"""What stands where there is no number."""


def name_of(key: str) -> str:
    """What a score or a detail is called on a page."""
    words = key.replace("_", " ").replace("bertscore", "BERTScore").replace(" at ", "@").replace(" f1", " F1")
    return NAMES.get(key, words[:1].upper() + words[1:])


def measured(value: float, unit: Unit) -> str:
    """A score's value with its unit."""
    if not math.isfinite(value):
        return "not defined"
    if unit == "fraction":
        return percent(value, 2)
    return f"{value:.2f}" if unit == "points" else f"{value:.3g}"


def interval_of(score: Score) -> str:
    """The interval of a score without its unit, such as `11.02 to 13.40`; empty where there is none."""
    return "" if score.interval is None else " to ".join(_end(end, score.unit) for end in score.interval)


def _end(value: float, unit: Unit) -> str:
    return f"{100 * value:.2f}" if unit == "fraction" else measured(value, unit)


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent, with a space that does not break; a dash where there is none."""
    return NONE if fraction is None or not math.isfinite(fraction) else f"{100 * fraction:.{digits}f}\u00a0%"


def duration(seconds: float) -> str:
    """A length of audio: `12.5 s`, `16.3 min`, `5.4 h`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f}\u00a0{unit}"
    return f"{seconds:.1f}\u00a0s"


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 utterance`, `2,703 utterances`."""
    return f"{number:,}\u00a0{one if number == 1 else many or one + 's'}"


def whole(number: int) -> Cell:
    """A count in a table."""
    return Cell(f"{number:,}", number)


def rate(fraction: float | None, digits: int = 1) -> Cell:
    """A fraction in a table, in percent."""
    return Cell(percent(fraction, digits), fraction)


def unbroken(label: str) -> str:
    """A short label that stays on one line."""
    return label.replace(" ", "\u00a0")


def listed(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
