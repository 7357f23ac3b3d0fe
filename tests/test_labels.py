"""Scores of labels: those of scikit-learn, for the test set and for every resample of it."""

from typing import Any, cast

import numpy as np
import pytest
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.metrics import labels
from encodeonce.evaluate.metrics.intervals import Bootstrap, Clusters
from encodeonce.evaluate.metrics.labels import label_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

KNOWN = ("on", "off", "louder", "softer")
pairs = st.lists(st.tuples(st.sampled_from(KNOWN), st.sampled_from((*KNOWN, "", "of course"))), min_size=1, max_size=30)


def f1_of(wanted: list[str], given: list[str], average: str) -> float:
    present = sorted(set(wanted))
    return float(f1_score(wanted, given, labels=present, average=average, zero_division=0))  # pyrefly: ignore


@settings(max_examples=100, deadline=None)
@given(pairs)
def test_scores_and_rows_are_those_of_scikit_learn(drawn):
    wanted, given = ([pair[side] for pair in drawn] for side in (0, 1))
    scores, table = label_scores(wanted, given)
    assert scores["accuracy"].value == pytest.approx(accuracy_score(wanted, given))
    for average in ("macro", "micro"):
        assert scores[f"f1_{average}"].value == pytest.approx(f1_of(wanted, given, average))
    names = [row["label"] for row in table["labels"]]
    expected: Any = precision_recall_fscore_support(wanted, given, labels=names, zero_division=0)
    for key, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[key] for row in table["labels"]] == pytest.approx(column.tolist())
    assert sorted(names) == sorted(set(wanted))
    assert table["outside"] == sum(label not in wanted for label in given)
    assert sum(row["count"] for row in table["confusions"]) == sum(a != b for a, b in drawn)


class Resamples:
    """A bootstrap of some given draws, which keeps what it is asked the interval of."""

    def __init__(self, times: list[list[int]]) -> None:
        self.times, self.asked = np.array(times), []

    def sums(self, columns: np.ndarray) -> np.ndarray:
        return self.times @ columns.astype(float)

    def interval(self, values: np.ndarray) -> None:
        self.asked.append(values.tolist())

    def mean(self, values: np.ndarray) -> None:
        self.interval(self.times @ values / self.times.sum(1))


def test_a_resample_has_the_scores_of_the_utterances_that_it_is():
    wanted, given = ["on", "on", "off", "louder", "off"], ["on", "off", "off", "so", "on"]
    times = [[1, 1, 1, 1, 1], [0, 2, 0, 3, 0], [3, 0, 2, 0, 0], [1, 0, 0, 1, 3]]
    bootstrap = Resamples(times)
    label_scores(wanted, given, bootstrap=cast(Bootstrap, bootstrap))
    corpora = [(np.repeat(wanted, drawn).tolist(), np.repeat(given, drawn).tolist()) for drawn in times]
    assert bootstrap.asked[0] == pytest.approx([accuracy_score(a, b) for a, b in corpora])
    assert bootstrap.asked[1] == pytest.approx([f1_of(a, b, "macro") for a, b in corpora])


def test_case_and_spaces_tell_no_labels_apart():
    scores, table = label_scores(["Turn  On", "turn on", " OFF"], ["turn on ", "TURN ON", "off"])
    assert {name: score.value for name, score in scores.items()} == {"accuracy": 1, "f1_macro": 1, "f1_micro": 1}
    assert [(row["label"], row["support"]) for row in table["labels"]] == [("turn on", 2), ("off", 1)]


def test_the_most_frequent_confusions_come_first():
    _, table = label_scores(["a", "a", "b", "a", "b"], ["b", "b", "x", "a", "a"])
    assert table["confusions"] == [
        {"reference": "a", "hypothesis": "b", "count": 2},
        {"reference": "b", "hypothesis": "a", "count": 1},
        {"reference": "b", "hypothesis": "x", "count": 1},
    ]
    assert table["outside"] == 1


def test_many_labels_have_no_interval_of_f1_but_one_of_accuracy(monkeypatch):
    bootstrap = Bootstrap(Clusters.find(None, 12), resamples=100)
    wanted, given = ["a", "b", "c"] * 4, ["a", "b", "b"] * 4
    assert all(score.interval for score in label_scores(wanted, given, bootstrap=bootstrap)[0].values())
    monkeypatch.setattr(labels, "RESAMPLED", 2)
    scores, _ = label_scores(wanted, given, bootstrap=bootstrap)
    assert scores["accuracy"].interval
    assert scores["f1_macro"].interval is None


def test_bad_requests_are_told():
    with pytest.raises(EvaluationError, match="2 references and 1 hypotheses"):
        label_scores(["a", "b"], ["a"])
    with pytest.raises(EvaluationError, match="0 references"):
        label_scores([], [])
