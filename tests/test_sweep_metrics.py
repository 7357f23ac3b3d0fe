"""The metrics that a sweep may be asked for are those that evaluations give, no more and no fewer."""

from typing import Any

import pytest
from encodeonce.evaluate.embeddings import retrieval_scores
from encodeonce.evaluate.hypotheses import Hypothesis
from encodeonce.evaluate.scoring import METRICS, ScoreOptions, Task, score
from encodeonce.evaluate.sweep.metrics import known, metrics_of
from encodeonce.train.config import DataConfig
from encodeonce.train.configure import load_config
from test_retrieval import make, store  # noqa: F401 (a fixture)


def config(**objectives: dict[str, Any]) -> Any:
    return load_config("demo-qformer", [f"objectives={objectives}", "training.best=loss"])


@pytest.mark.parametrize("task", METRICS)
def test_texts_have_the_scores_of_their_task(task: Task):
    texts = [Hypothesis(name, name, text=name, duration=1.0, seconds=0.1, language="en") for name in ("on", "off")]
    found = score(texts, ScoreOptions(task=task, leave_out=("bertscore",)))
    assert set(metrics_of(config(stg={}), task, ("bertscore",))) == set(found.scores)
    assert set(found.scores) <= set(known())


@pytest.mark.parametrize("objectives", [{"stc": {}}, {"stm": {}}, {"stc": {}, "stm": {}}])
def test_contrast_and_matching_have_their_own(objectives, store):  # noqa: F811
    found, _ = retrieval_scores(make("qformer", objectives), store, ["layer-9"], data=DataConfig())
    assert set(metrics_of(config(**objectives), "recognition")) == set(found)
    assert set(found) <= set(known())
    both = metrics_of(config(stg={}, **objectives), "recognition")
    assert set(both) == set(found) | set(metrics_of(config(stg={}), "recognition"))
