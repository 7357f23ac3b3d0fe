"""Utterances in bands of duration, length and WER, and by speaker: counted with numpy, so that 1,000 hours take a second."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from encodeonce.evaluate.evaluation import Scored
from encodeonce.evaluate.metrics.intervals import FEWEST_SPEAKERS, FEWEST_UTTERANCES, Clusters, student_quantile

DURATIONS = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
LENGTHS = (0, 5, 10, 20, 30, 40)
ERROR_RATES = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)
UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Band:
    """Utterances that have something in common, such as a speaker.

    Attributes:
        label: as shown, such as `5 to 10 s`.
        words: of their references.
        errors: of words.
        interval: of `wer`, 95 %; None where there are too few utterances to say.
    """

    label: str
    utterances: int
    words: int
    errors: int
    interval: tuple[float, float] | None = None

    @property
    def wer(self) -> float | None:
        """Errors over words, a fraction; None where there is no word."""
        return self.errors / self.words if self.words else None


@dataclass(frozen=True, slots=True)
class MeaningBand:
    """BERTScore F1 of the utterances of a band of WER, in order from low to high.

    Attributes:
        low, high: its 5th and 95th percentile.
        quartiles: its lower quartile, median, upper quartile.
    """

    label: str
    utterances: int
    mean: float
    low: float
    quartiles: tuple[float, float, float]
    high: float


@dataclass(frozen=True, slots=True)
class LengthRatio:
    """Words written over words said, of each utterance that has a word.

    Attributes:
        total: all words written over all words said.
        quantiles: by percent: 1, 5, 25, 50, 75, 95, 99.
        edges, counts: a histogram: `counts[i]` utterances lie from `edges[i]` to below `edges[i + 1]`; what is beyond the last
            edge is in the last bin.
    """

    total: float
    quantiles: Mapping[int, float]
    edges: tuple[float, ...]
    counts: tuple[int, ...]


class Columns:
    """What is counted of each utterance, as arrays `[N]`.

    Attributes:
        errors, words: in its reference; `written`: words of its hypothesis.
        seconds, meaning: NaN where not known.
        speakers: None where not known.
        clusters: what intervals of the whole are over.
    """

    def __init__(self, utterances: Sequence[Scored]) -> None:
        count = len(utterances)
        edits = np.array(
            [(w.hits, w.substitutions, w.deletions, w.insertions) for w in (one.words for one in utterances)], np.int64
        ).reshape(count, 4)
        hits, substitutions, deletions, insertions = edits.T
        self.kinds = {"substitutions": substitutions, "deletions": deletions, "insertions": insertions}
        self.errors = substitutions + deletions + insertions
        self.words = hits + substitutions + deletions
        self.written = hits + substitutions + insertions
        self.wer = self.errors / np.maximum(self.words, 1)
        self.seconds = np.array([one.source.duration for one in utterances], np.float64)
        self.meaning = np.array([one.meaning for one in utterances], np.float64)
        self.speakers = tuple(one.source.speaker for one in utterances)
        self.clusters = Clusters.find(self.speakers, count)


def ratio_interval(
    errors: np.ndarray, words: np.ndarray, level: float = 0.95, fewest: int = FEWEST_UTTERANCES
) -> tuple[float, float] | None:
    """Of the sum of errors over the sum of words, from groups that are independent of each other, such as speakers.

    Linearised (Cochran 1977, 6.3), with Student's t. It agrees with the bootstrap of the whole's rates, which would take minutes for
    thousands of speakers.

    Args:
        errors, words: of each group, `[G]`.

    Returns: None where less than `fewest` groups have words, or half as many have errors.
    """
    errors, words = errors[words > 0], words[words > 0]
    groups = len(words)
    if groups < fewest or 2 * np.count_nonzero(errors) < fewest:
        return None
    rate = errors.sum() / words.sum()
    residuals = errors - rate * words
    deviation = math.sqrt(groups / (groups - 1) * float(residuals @ residuals)) / words.sum()
    reach = student_quantile((1 + level) / 2, groups - 1) * deviation
    return max(0.0, float(rate - reach)), float(rate + reach)


def by_duration(columns: Columns) -> tuple[Band, ...]:
    """In seconds; empty where no duration is known."""
    if np.isnan(columns.seconds).all():
        return ()
    labels = [*_labels(DURATIONS, "s"), UNKNOWN]
    index = np.where(
        np.isnan(columns.seconds), len(DURATIONS) + 1, np.searchsorted(DURATIONS, columns.seconds, "right")
    )
    return _bands(columns, index, labels)


def by_length(columns: Columns) -> tuple[Band, ...]:
    """In words of the reference."""
    labels = ["no word", *(f"{low + 1} to {high}" for low, high in pairwise(LENGTHS))]
    return _bands(columns, np.searchsorted(LENGTHS, columns.words), [*labels, f"over {LENGTHS[-1]}"])


def by_speaker(columns: Columns) -> tuple[Band, ...]:
    """The worst first; empty where no speaker is known. Intervals are over the speaker's own utterances."""
    names = tuple(dict.fromkeys(name for name in columns.speakers if name is not None))
    if not names:
        return ()
    numbers: dict[str | None, int] = {name: number for number, name in enumerate(names)}
    index = np.array([numbers.get(name, len(names)) for name in columns.speakers])
    bands = _bands(columns, index, [*names, UNKNOWN], over_utterances=True)
    return tuple(sorted(bands, key=lambda band: (-(band.wer or 0), band.label)))


def meaning_by_errors(columns: Columns) -> tuple[MeaningBand, ...] | None:
    """BERTScore F1 by band of WER, each including its upper end; None without BERTScore."""
    known = ~np.isnan(columns.meaning)
    if not known.any():
        return None
    index = np.where(known, np.searchsorted(ERROR_RATES, columns.wer), -1)
    percent = [f"{100 * edge:g}" for edge in ERROR_RATES]
    labels = [
        "0 %",
        f"up to {percent[1]} %",
        *(f"{low} to {high} %" for low, high in pairwise(percent[1:])),
        f"over {percent[-1]} %",
    ]
    found = []
    for number, label in enumerate(labels):
        values = columns.meaning[index == number]
        if len(values):
            low, lower, middle, upper, high = map(float, np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)))
            found.append(MeaningBand(label, len(values), float(values.mean()), low, (lower, middle, upper), high))
    return tuple(found)


def length_ratio(columns: Columns) -> LengthRatio | None:
    """None where no reference has a word."""
    said = columns.words > 0
    if not said.any():
        return None
    ratios = columns.written[said] / columns.words[said]
    percents = (1, 5, 25, 50, 75, 95, 99)
    edges = np.clip(np.arange(22) / 10 - 0.05, 0, None)
    counts, _ = np.histogram(np.minimum(ratios, edges[-1]), edges)
    return LengthRatio(
        float(columns.written.sum() / columns.words.sum()),
        dict(zip(percents, map(float, np.percentile(ratios, percents)), strict=True)),
        tuple(map(float, edges)),
        tuple(map(int, counts)),
    )


def _labels(edges: Sequence[float], unit: str) -> list[str]:
    between = (f"{low:g} to {high:g} {unit}" for low, high in pairwise(edges))
    return [f"under {edges[0]:g} {unit}", *between, f"{edges[-1]:g} {unit} and over"]


def _bands(
    columns: Columns, index: np.ndarray, labels: Sequence[str], over_utterances: bool = False
) -> tuple[Band, ...]:
    """Of those labels that an utterance has; `index`: of its label, `[N]`."""
    order = np.argsort(index, kind="stable")
    ends = np.searchsorted(index[order], np.arange(len(labels) + 1))
    over_utterances = over_utterances or columns.clusters.over == "utterances"
    found = []
    for number, label in enumerate(labels):
        members = order[ends[number] : ends[number + 1]]
        if not len(members):
            continue
        errors, words = columns.errors[members], columns.words[members]
        if over_utterances:
            interval = ratio_interval(errors, words)
        else:
            of, known = columns.clusters.of[members], np.count_nonzero(words) >= FEWEST_UTTERANCES
            sums = np.bincount(of, errors), np.bincount(of, words)
            interval = ratio_interval(*sums, fewest=FEWEST_SPEAKERS) if known else None
        found.append(Band(label, len(members), int(words.sum()), int(errors.sum()), interval))
    return tuple(found)
