"""BERTScore (Zhang et al. 2020): how much of what was meant survives, by the library bert-score and any BERT that is at hand."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Score
from encodeonce.evaluate.metrics.berts import ScoringBert, find_source, load_scoring_bert
from encodeonce.evaluate.metrics.intervals import Bootstrap
from encodeonce.evaluate.metrics.means import mean_score
from encodeonce.train.llm.quiet import quiet

PAIRS = 1024
"""Pairs whose token embeddings are held at once: with a model of width 1024 a few hundred MB."""
NAMES = ("bertscore_precision", "bertscore_recall", "bertscore_f1")


@dataclass(frozen=True)
class MeaningScores:
    """BERTScore of each utterance.

    Attributes:
        values: `[N, 3]` float64: precision, recall, F1. 0 where hypothesis or reference is empty, as bert-score has it.
        baseline: what unrelated sentences get, `[3]`, where bert-score knows it for this model, layer and language.
        signature: model, layer, versions: bert-score's hash. Scores of different models do not compare.
        rescaled_signature: the same of the rescaled scores.
    """

    values: np.ndarray
    baseline: np.ndarray | None
    signature: str
    rescaled_signature: str

    @property
    def f1(self) -> np.ndarray:
        """`[N]`, not rescaled."""
        return self.values[:, 2]

    @property
    def rescaled(self) -> np.ndarray | None:
        """`[N, 3]`: 0 at the baseline, 1 at equal sentences; None without a baseline."""
        return None if self.baseline is None else (self.values - self.baseline) / (1 - self.baseline)


def bert_scores(
    references: Sequence[str],
    hypotheses: Sequence[str],
    *,
    model: str | Path | None = None,
    layer: int | None = None,
    language: str = "en",
    device: str = "cpu",
    batch_size: int = 64,
) -> MeaningScores:
    """BERTScore of each pair, without idf weights.

    What occurs several times is computed once, and sentences that are equal are 1 without being computed: on a good recogniser's
    output that is most of the work.

    Args:
        model: minilm-l6, a folder, a name that bert-score knows, or a hub id; None: what is at hand. See `berts.find_source`.
        layer: see `berts.load_scoring_bert`.
        language: whose model and baseline.

    Raises:
        EvaluationError: no BERT at hand, with how to give one; no such layer; or not one hypothesis for each reference.
        StoreError: bert-score is not installed; the message says how to install it.
    """
    if len(references) != len(hypotheses):
        raise EvaluationError(
            f"{len(references)} references and {len(hypotheses)} hypotheses: give one hypothesis for each reference"
        )
    bert = load_scoring_bert(find_source(model, language), layer, language, device)
    pairs = [(said.strip(), written.strip()) for said, written in zip(references, hypotheses, strict=True)]
    found = {pair: np.full(3, float(pair[0] == pair[1] != "")) for pair in set(pairs)}
    open_ = sorted((pair for pair in found if pair[0] != pair[1] and all(pair)), key=lambda pair: (len(pair[0]), pair))
    for begin in range(0, len(open_), PAIRS):
        some = open_[begin : begin + PAIRS]
        found |= zip(some, _score(bert, some, batch_size), strict=True)
    values = np.array([found[pair] for pair in pairs]).reshape(-1, 3)
    return MeaningScores(values, bert.baseline, _signature(bert, False), _signature(bert, True))


def meaning_scores(meaning: MeaningScores, bootstrap: Bootstrap | None = None) -> dict[str, Score]:
    """`bertscore_precision`, `bertscore_recall`, `bertscore_f1`, and with a baseline `..._rescaled` of each: means over utterances.

    Args:
        bootstrap: of these utterances; None: no intervals.
    """
    kinds = [("", meaning.values, meaning.signature)]
    if meaning.rescaled is not None:
        kinds.append(("_rescaled", meaning.rescaled, meaning.rescaled_signature))
    return {
        name + ending: mean_score(name + ending, values[:, column], signature, bootstrap)
        for ending, values, signature in kinds
        for column, name in enumerate(NAMES)
    }


def _score(bert: ScoringBert, pairs: Sequence[tuple[str, str]], batch_size: int) -> np.ndarray:
    """`[P, 3]`, of pairs neither side of which is empty."""
    from bert_score.utils import bert_cos_score_idf

    weights = defaultdict(lambda: 1.0, {bert.tokenizer.sep_token_id: 0.0, bert.tokenizer.cls_token_id: 0.0})
    said, written = ([pair[side] for pair in pairs] for side in (0, 1))
    device = next(bert.model.parameters()).device
    with quiet():
        scores = bert_cos_score_idf(
            bert.model, said, written, bert.tokenizer, weights, device=device, batch_size=batch_size
        )
    return scores.double().numpy()


def _signature(bert: ScoringBert, rescaled: bool) -> str:
    from bert_score.utils import get_hash

    return get_hash(bert.shown, bert.layer, False, rescaled, False, False)
