"""Where a system fails: its errors by duration, speaker and length, by word, and by what was left of the meaning. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from encodeonce.evaluate.decoding.flags import REPETITION
from encodeonce.evaluate.evaluation import Evaluation, Scored
from encodeonce.evaluate.report import notices
from encodeonce.evaluate.report.bands import (
    Band,
    Columns,
    LengthRatio,
    MeaningBand,
    by_duration,
    by_length,
    by_speaker,
    length_ratio,
    meaning_by_errors,
)
from encodeonce.evaluate.report.confusions import WordError, WordErrors, word_errors

__all__ = ["Analysis", "Band", "LengthRatio", "MeaningBand", "WordError", "WordErrors", "analyse"]

SPOKEN = ("recognition", "resynthesis")
"""Tasks whose references are what was said, word by word: in others a word error is no mistake."""


@dataclass(frozen=True)
class Analysis:
    """All of it; what an evaluation has nothing for is empty, or None.

    Attributes:
        utterances, words, errors: of the whole evaluation.
        intervals_over: what the intervals of `by_duration` and `by_length` are over; those of `by_speaker` are over the speaker's
            utterances. Intervals over utterances say nothing of other speakers.
        by_duration, by_length: in order; utterances of unknown duration are in a band of their own, `not known`.
        by_speaker: the worst first; empty where no speaker is known.
        meaning: in order of WER; None without BERTScore.
        confusions: substitutions, deletions and insertions, the most frequent first.
        erroneous: utterances with a word error; where more than `confusions.aligned`, the counts are of that many of them.
        worst: by WER, then by errors.
        median: those in the middle when all are put in order of WER, then of length, and not among the worst.
        flags: utterances by flag, the most frequent first.
        notices: sentences that hold of this evaluation.
    """

    utterances: int
    words: int
    errors: int
    intervals_over: Literal["speakers", "utterances"]
    by_duration: tuple[Band, ...]
    by_speaker: tuple[Band, ...]
    by_length: tuple[Band, ...]
    meaning: tuple[MeaningBand, ...] | None
    confusions: WordErrors
    erroneous: int
    worst: tuple[Scored, ...]
    median: tuple[Scored, ...]
    length_ratio: LengthRatio | None
    flags: Mapping[str, int]
    notices: tuple[str, ...]

    @property
    def wer(self) -> float | None:
        """Of the whole evaluation, a fraction; None where there is no word."""
        return self.errors / self.words if self.words else None

    @property
    def repetition_rate(self) -> float:
        """Share of the utterances that are flagged as repeating themselves."""
        return self.flags.get(REPETITION, 0) / max(self.utterances, 1)


def analyse(evaluation: Evaluation, examples: int = 10, most: int = 20) -> Analysis:
    """Break an evaluation down; the same evaluation gives the same analysis.

    Args:
        examples: worst and median utterances to pick, of each.
        most: of the most frequent substitutions, deletions and insertions, of each.
    """
    utterances = evaluation.utterances
    columns = Columns(utterances)
    words, errors = int(columns.words.sum()), int(columns.errors.sum())
    overall = errors / words if words else None
    erroneous = int(np.count_nonzero(columns.errors))
    durations, lengths, speakers = by_duration(columns), by_length(columns), by_speaker(columns)
    meaning, ratio = meaning_by_errors(columns), length_ratio(columns)
    confusions = word_errors(utterances, most)
    flags = dict(Counter(flag for one in utterances for flag in one.source.flags).most_common())
    of_words = (
        *notices.kinds_of_error(columns),
        *notices.writing(evaluation.scores),
        *notices.concentration(columns),
        *notices.furthest_speaker(columns, speakers),
        *notices.worst_band(durations, overall, "Utterances"),
        *notices.worst_band(lengths, overall, "References"),
        *notices.one_confusion(confusions, errors, erroneous),
        *notices.meaning(meaning),
    )
    languages = Counter(one.source.language for one in utterances if one.source.language is not None)
    sentences = (
        *(of_words if evaluation.task in SPOKEN else ()),
        *(notices.languages(languages) if evaluation.task == "translation" else ()),
        *(notices.lengths(ratio) if evaluation.task != "labels" else ()),
        *notices.flagged(flags, sum(bool(one.source.flags) for one in utterances), len(utterances)),
    )
    return Analysis(
        len(utterances),
        words,
        errors,
        columns.clusters.over,
        durations,
        speakers,
        lengths,
        meaning,
        confusions,
        erroneous,
        _worst(utterances, columns, examples),
        _median(utterances, columns, examples),
        ratio,
        flags,
        sentences,
    )


def _worst(utterances: Sequence[Scored], columns: Columns, count: int) -> tuple[Scored, ...]:
    order = np.lexsort((-columns.errors, -columns.wer))[:count]
    return tuple(utterances[i] for i in order if columns.errors[i])


def _median(utterances: Sequence[Scored], columns: Columns, count: int) -> tuple[Scored, ...]:
    order = np.lexsort((columns.words, columns.wer))
    first = max(0, (len(order) - count) // 2)
    worst = {id(one) for one in _worst(utterances, columns, count)}
    middle = [utterances[i] for i in order[first : first + count]]
    return tuple(one for one in middle if id(one) not in worst)
