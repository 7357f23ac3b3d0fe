"""Accuracy and F1 where each utterance has one label: an intent, a keyword, the slots of a command as one text."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Score
from encodeonce.evaluate.metrics.intervals import Bootstrap
from encodeonce.evaluate.metrics.means import mean_score

CONFUSIONS = 50
"""Pairs of labels that are listed, the most frequent first."""
RESAMPLED = 200
"""Labels at most of which F1 has an interval: each is counted in every resample."""
SIGNATURE = "labels|casefold|spaces"


def label_scores(
    references: Sequence[str], hypotheses: Sequence[str], *, bootstrap: Bootstrap | None = None
) -> tuple[dict[str, Score], dict[str, Any]]:
    """Scores of labels, which compare without case and runs of white space.

    The known labels are those of the references. A hypothesis that is none of them is counted as `outside`: it is wrong, and takes
    from a label's recall, but from no label's precision. Macro F1 is the mean over known labels, 0 for one that is never told right
    (scikit-learn's `f1_score` with the known ones as `labels`); micro F1 is accuracy where nothing is outside.

    Args:
        bootstrap: of these utterances; None: no intervals.

    Returns:
        `accuracy`, `f1_macro` and `f1_micro`; and a table for `Evaluation.details["labels"]`: rows of `labels`, the most frequent
        first, with precision, recall, F1 and support; `confusions` with their counts; `outside`, utterances.

    Raises:
        EvaluationError: no reference, or not one hypothesis for each.
    """
    if not references or len(references) != len(hypotheses):
        raise EvaluationError(
            f"{len(references)} references and {len(hypotheses)} hypotheses: give one label for each reference, and at least one"
        )
    wanted, given = ([comparable(text) for text in texts] for texts in (references, hypotheses))
    support = Counter(wanted)
    names = sorted(support, key=lambda name: (-support[name], name))
    hits, told = Counter(a for a, b in zip(wanted, given, strict=True) if a == b), Counter(given)
    counts = np.array([[count[name] for name in names] for count in (hits, support, told)])
    outside = sum(count for name, count in told.items() if name not in support)
    correct = np.array([a == b for a, b in zip(wanted, given, strict=True)], np.float64)
    about = {"utterances": len(wanted), "labels": len(names), "outside": outside}
    scores = {"accuracy": mean_score("accuracy", correct, SIGNATURE, bootstrap, about)}
    sums = None
    if bootstrap is not None and len(names) <= RESAMPLED:
        sums = bootstrap.sums(_outcomes(names, wanted, given)).reshape(-1, 3, len(names))
    for name, average in (("f1_macro", macro_f1), ("f1_micro", micro_f1)):
        interval = None if bootstrap is None or sums is None else bootstrap.interval(average(sums))
        scores[name] = Score(
            name, float(average(counts)), "fraction", SIGNATURE, interval, about, lower_is_better=False
        )
    return scores, {"labels": _rows(names, counts), "confusions": _confusions(wanted, given), "outside": outside}


def comparable(label: str) -> str:
    """A label without what does not tell labels apart."""
    return " ".join(label.casefold().split())


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 over the labels that are wanted; `[...]` of counts `[..., 3, L]`: where each is right, wanted, given."""
    return _f1(counts).sum(-1) / (counts[..., 1, :] > 0).sum(-1)


def micro_f1(counts: np.ndarray) -> np.ndarray:
    """F1 of all labels' counts together; shapes as `macro_f1`."""
    return _f1(counts.sum(-1, keepdims=True))[..., 0]


def _f1(counts: np.ndarray) -> np.ndarray:
    right, wanted, given = np.moveaxis(counts, -2, 0)
    return 2 * right / np.maximum(wanted + given, 1)


def _outcomes(names: Sequence[str], wanted: Sequence[str], given: Sequence[str]) -> np.ndarray:
    """`[N, 3 L]` bool: of each utterance whether each label is right, is wanted, is given."""
    place = {name: number for number, name in enumerate(names)}
    first, second = (np.array([place.get(name, -1) for name in said])[:, None] for said in (wanted, given))
    labels = np.arange(len(names))
    return np.hstack(((first == second) & (first == labels), first == labels, second == labels))


def _rows(names: Sequence[str], counts: np.ndarray) -> list[dict[str, Any]]:
    right, wanted, given = counts
    columns = (names, right / np.maximum(given, 1), right / wanted, _f1(counts), wanted)
    keys = ("label", "precision", "recall", "f1", "support")
    return [
        dict(zip(keys, (name, *(value.item() for value in values)), strict=True))
        for name, *values in zip(*columns, strict=True)
    ]


def _confusions(wanted: Sequence[str], given: Sequence[str]) -> list[dict[str, Any]]:
    wrong = Counter((a, b) for a, b in zip(wanted, given, strict=True) if a != b)
    most = sorted(wrong.items(), key=lambda item: (-item[1], item[0]))[:CONFUSIONS]
    return [{"reference": a, "hypothesis": b, "count": count} for (a, b), count in most]
