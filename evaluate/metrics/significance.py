"""Is one system better than another, or was it luck? A paired test on the utterances of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Evaluation, Scored
from encodeonce.evaluate.metrics.intervals import Bootstrap, Clusters, Interval

NAMED = 3
"""Ids of those that do not fit are named in an error, at most so many."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The word error rates of two systems on the same utterances.

    Attributes:
        first, second: titles.
        first_wer, second_wer: fractions, of the utterances in both.
        difference: `first_wer - second_wer`: below zero the first makes fewer errors.
        interval: of the difference, over `over`; None where `Clusters.enough` has too few, or nothing varies.
        p_value: how often chance alone makes a difference at least as large, in either direction.
        winner: where the p-value is below 1 - level; None: neither.
        first_better, second_better: utterances in which it makes fewer errors than the other.
        only_first, only_second: utterances left out.
        over: what was taken as independent, such as `40 speakers`.
        signature: the test, and what errors were counted by.
    """

    first: str
    second: str
    utterances: int
    first_wer: float
    second_wer: float
    difference: float
    interval: Interval | None
    p_value: float
    winner: Literal["first", "second"] | None
    first_better: int
    second_better: int
    only_first: int
    only_second: int
    over: str
    signature: str


def compare(
    first: Evaluation,
    second: Evaluation,
    *,
    common_only: bool = False,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations by their word errors; whole speakers are exchanged and drawn, where there are enough of them.

    Args:
        common_only: leave out utterances that only one of them has.

    Raises:
        EvaluationError: they do not compare: other ways of counting, other utterances, other references; or no words to compare.
    """
    pairs, only_first, only_second = _paired(first, second, common_only)
    words = np.array([one.words.units for one, _ in pairs])
    errors = np.array([(one.words.errors, other.words.errors) for one, other in pairs])
    total = int(words.sum())
    if not total:
        raise EvaluationError(
            f"{first.title} and {second.title} have {len(pairs)} utterances in common, without a word"
        )
    gained = errors[:, 0] - errors[:, 1]
    clusters = Clusters.find([one.source.speaker for one, _ in pairs], len(pairs))
    p_value = paired_test(gained, clusters, resamples, seed)
    difference = float(gained.sum() / total)
    better = "first" if difference < 0 else "second"
    return Comparison(
        first.title,
        second.title,
        len(pairs),
        float(errors[:, 0].sum() / total),
        float(errors[:, 1].sum() / total),
        difference,
        Bootstrap(clusters, level, resamples, seed).ratio(gained, words),
        p_value,
        better if p_value < 1 - level else None,
        int((gained < 0).sum()),
        int((gained > 0).sum()),
        only_first,
        only_second,
        clusters.described,
        f"sign-flip|two-sided|resamples:{resamples}|seed:{seed}|over:{clusters.over}|{first.scores['wer'].signature}",
    )


def paired_test(
    differences: Sequence[int] | np.ndarray, clusters: Clusters, resamples: int = 10_000, seed: int = 0
) -> float:
    """The two-sided p-value of the sum of paired differences: approximate randomisation (Noreen 1989) of whole clusters.

    If neither system is better, each cluster might as well have come out with the systems exchanged, its difference with the other
    sign. All such exchanges are gone through where there are fewer than `resamples`; else that many random ones, and the observed
    one with them (Phipson and Smyth 2010), so that p is never 0.

    Args:
        differences: errors of the one system less those of the other, of each utterance, `[N]`.
    """
    totals = clusters.totals(np.asarray(differences, np.float64)[:, None], seed)[:, 0]
    totals = totals[totals != 0]
    observed, count = abs(totals.sum()), len(totals)
    if count < 63 and 2**count <= resamples:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float(np.mean(abs(signs @ totals) >= observed))
    random, extreme = np.random.default_rng(seed), 1
    for begin in range(0, resamples, 512):
        signs = 1 - 2 * random.integers(2, size=(min(512, resamples - begin), count), dtype=np.int8)
        extreme += int(np.count_nonzero(abs(signs @ totals) >= observed))
    return extreme / (resamples + 1)


def _paired(first: Evaluation, second: Evaluation, common_only: bool) -> tuple[list[tuple[Scored, Scored]], int, int]:
    """The utterances of both, in the order of the first; and how many only the one has, and only the other."""
    for one in (first, second):
        if "wer" not in one.scores:
            raise EvaluationError(f"{one.title} has no word error rate, by which evaluations are compared")
    counted = first.scores["wer"].signature, second.scores["wer"].signature
    if counted[0] != counted[1]:
        raise EvaluationError(
            f"{first.title} was counted by {counted[0]} and {second.title} by {counted[1]}: score both in the same way"
        )
    mine, others = _by_id(first), _by_id(second)
    common = [name for name in mine if name in others]
    only_first = [name for name in mine if name not in others]
    only_second = [name for name in others if name not in mine]
    if not common:
        raise EvaluationError(f"{first.title} and {second.title} have no utterance in common")
    if (only_first or only_second) and not common_only:
        parts = [
            f"{len(names):,} utterances are only in {title} ({_named(names)})"
            for names, title in ((only_first, first.title), (only_second, second.title))
            if names
        ]
        raise EvaluationError(f"{' and '.join(parts)}; ask for those in common to compare the other {len(common):,}")
    if differing := [name for name in common if mine[name].reference != others[name].reference]:
        raise EvaluationError(
            f"{len(differing):,} of {len(common):,} utterances have another reference in {second.title} than in {first.title} "
            f"({_named(differing)}): score both against the same texts"
        )
    return [(mine[name], others[name]) for name in common], len(only_first), len(only_second)


def _by_id(evaluation: Evaluation) -> Mapping[str, Scored]:
    return {one.source.id: one for one in evaluation.utterances}


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
