"""The metrics that a training can be measured by, told from its configuration: columns that a sweep's table may have."""

from encodeonce.evaluate.metrics.meaning import NAMES
from encodeonce.evaluate.metrics.retrieval import CUTOFFS
from encodeonce.evaluate.scoring import METRICS, Task
from encodeonce.train.checks import writers_of
from encodeonce.train.config import TrainConfig

SCORES = {
    "bertscore": (*NAMES, *(f"{name}_rescaled" for name in NAMES)),
    "labels": ("accuracy", "f1_macro", "f1_micro"),
}
"""Of the names of `scoring.METRICS` those that are several scores; rescaled ones are there where BERTScore knows a baseline."""
RECALL = tuple(
    f"recall_at_{cutoff}_{direction}" for direction in ("speech_to_text", "text_to_speech") for cutoff in CUTOFFS
)
MATCHING, HARD = "matching_accuracy", "matching_accuracy_hard"


def scores_of(names: tuple[str, ...]) -> list[str]:
    """The scores that some of `scoring.METRICS` give."""
    return [score for name in names for score in SCORES.get(name, (name,))]


def known() -> list[str]:
    """Every score of every task and objective."""
    return list(
        dict.fromkeys([*(score for names in METRICS.values() for score in scores_of(names)), *RECALL, MATCHING, HARD])
    )


def metrics_of(config: TrainConfig, task: Task, leave_out: tuple[str, ...] = ()) -> list[str]:
    """The scores that an evaluation of a training may give: of its texts where it writes, of retrieval and matching."""
    objectives = config.objectives
    found = scores_of(tuple(name for name in METRICS[task] if name not in leave_out)) if writers_of(config) else []
    found += RECALL if objectives.stc else ()
    found += (MATCHING,) if objectives.stm else ()
    return found + ([HARD] if objectives.stc and objectives.stm else [])
