"""What to notice in an evaluation, as sentences; each is there only when it holds."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from encodeonce.evaluate.evaluation import Score
from encodeonce.evaluate.report.bands import UNKNOWN, Band, Columns, LengthRatio, MeaningBand, ratio_interval
from encodeonce.evaluate.report.confusions import WordErrors
from encodeonce.evaluate.report.wording import listed

SEVERAL = 10
"""Errors from which on it is worth saying of which kind most are."""
SURE = 0.05
"""That a band differs by chance alone, over all bands that were looked at (Bonferroni)."""


def kinds_of_error(columns: Columns) -> Iterator[str]:
    """Whether one kind makes up most errors, and how many utterances have none or more than words."""
    errors, utterances = int(columns.errors.sum()), len(columns.errors)
    for name, counts in columns.kinds.items():
        if errors >= SEVERAL and 2 * (of_kind := int(counts.sum())) > errors:
            yield f"{_percent(of_kind / errors)} of the word errors are {name} ({of_kind:,} of {errors:,})."
    if right := int((columns.errors == 0).sum()):
        yield f"{_percent(right / utterances)} of the utterances are without a word error ({right:,} of {utterances:,})."
    if over := int((columns.errors > columns.words).sum()):
        have = "has" if over == 1 else "have"
        yield f"{over:,} of {utterances:,} utterances {have} more errors than words."


def writing(scores: Mapping[str, Score]) -> Iterator[str]:
    """Whether most errors of the raw texts are of a kind that normalisation takes out."""
    if "wer" in scores and "wer_raw" in scores:
        normalised, raw = scores["wer"].value, scores["wer_raw"].value
        if raw >= max(2 * normalised, normalised + 0.05):
            yield (
                f"The WER of the raw texts is {_percent(raw)}, of the normalised ones {_percent(normalised)}: "
                "they differ in case, punctuation or spelling."
            )


def concentration(columns: Columns) -> Iterator[str]:
    """Whether few utterances have half of the errors."""
    errors, utterances = int(columns.errors.sum()), len(columns.errors)
    if not errors:
        return
    few = int(np.searchsorted(np.cumsum(np.sort(columns.errors)[::-1]), errors / 2)) + 1
    if few <= utterances / 10:
        yield f"Half of all word errors are in {_percent(few / utterances)} of the utterances ({few:,} of {utterances:,})."


def furthest_speaker(columns: Columns, bands: Sequence[Band]) -> Iterator[str]:
    """The speaker whose WER is furthest from that of all others, where that is more than chance."""
    words, errors = int(columns.words.sum()), int(columns.errors.sum())
    speakers = np.array([name or "" for name in columns.speakers])
    known = [band for band in bands if band.label != UNKNOWN and band.interval and words > band.words]
    found = []
    for band in known:
        rest = (errors - band.errors) / (words - band.words)
        if band.interval and not band.interval[0] <= rest <= band.interval[1]:
            found.append((abs((band.wer or 0) - rest), band.label, rest, band))
    for _, name, rest, band in sorted(found, key=lambda entry: (-entry[0], entry[1])):
        own = speakers == name
        interval = ratio_interval(columns.errors[own], columns.words[own], 1 - SURE / len(known))
        if interval and not interval[0] <= rest <= interval[1]:
            yield f"Speaker {name} is furthest from the others: WER {_with_interval(band)}, all others together {_percent(rest)}."
            return


def worst_band(bands: Sequence[Band], overall: float | None, of: str) -> Iterator[str]:
    """The band of duration or length whose WER is above the whole's by half and more, beyond its interval."""
    above = [
        band
        for band in bands
        if overall and band.interval and band.interval[0] > overall and (band.wer or 0) >= 1.5 * overall
    ]
    if above:
        band = max(above, key=lambda band: band.wer or 0)
        yield f"{of} of {band.label} have a WER of {_with_interval(band)}, all together {_percent(overall or 0)}."


def lengths(ratio: LengthRatio | None) -> Iterator[str]:
    """Whether hypotheses are longer or shorter than what was said, by a twentieth and more."""
    if ratio and abs(ratio.total - 1) >= 0.05:
        more = "more" if ratio.total > 1 else "fewer"
        yield f"The hypotheses have {_percent(abs(ratio.total - 1))} {more} words than the references."


def meaning(bands: tuple[MeaningBand, ...] | None) -> Iterator[str]:
    """What is left of the meaning where most words are wrong."""
    if bands and len(bands) > 1 and bands[-1].label.startswith(("50 ", "over ")):
        first, last = bands[0], bands[-1]
        yield (
            f"The median BERTScore F1 is {_percent(last.quartiles[1])} at a WER of {last.label} ({last.utterances:,} of all utterances), "
            f"{_percent(first.quartiles[1])} at {first.label}."
        )


def languages(utterances: Mapping[str, int]) -> Iterator[str]:
    """Whether the texts are in several languages; `utterances`: of each."""
    if len(utterances) > 1:
        counted = [f"{name} ({count:,} utterances)" for name, count in sorted(utterances.items())]
        yield f"The texts are in {listed(counted)}: every score is of all of them together."


def flagged(flags: Mapping[str, int], any_flag: int, utterances: int) -> Iterator[str]:
    """The share that decoding flagged, and the flag most of it has."""
    if any_flag:
        name, count = next(iter(flags.items()))
        yield (
            f"{_percent(any_flag / utterances)} of the utterances are flagged ({any_flag:,} of {utterances:,}), "
            f"most often as {name} ({count:,}); they are counted like all others."
        )


def one_confusion(words: WordErrors, errors: int, erroneous: int) -> Iterator[str]:
    """A single pair of words that makes up one error in a hundred, where all were looked at."""
    if (
        words.substitutions
        and words.aligned == erroneous
        and (first := words.substitutions[0]).count >= max(errors / 100, 5)
    ):
        yield (
            f"The most frequent confusion is {first.reference} heard as {first.hypothesis}: {first.count:,} times, "
            f"{_percent(first.count / errors)} of all word errors."
        )


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.{1 if fraction < 0.995 else 0}f} %"


def _with_interval(band: Band) -> str:
    interval = f" ({_percent(band.interval[0])} to {_percent(band.interval[1])})" if band.interval else ""
    return f"{_percent(band.wer or 0)}{interval}"
