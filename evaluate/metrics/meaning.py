"""BERTScore (Zhang et al. 2020): how much of what was meant survives, by the library bert-score and any BERT that is at hand."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Score
from encodeonce.evaluate.metrics.berts import ScoringBert, find_source, load_scoring_bert
from encodeonce.evaluate.metrics.intervals import Bootstrap
from encodeonce.evaluate.metrics.kept import KeptScores, Pair
from encodeonce.evaluate.metrics.means import mean_score
from encodeonce.evaluate.progress import Counting, EvaluationProgress
from encodeonce.train.llm.quiet import quiet

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
    kept: Path | None = None,
    progress: Counting | None = None,
) -> MeaningScores:
    """BERTScore of each pair, without idf weights.

    What occurs several times is computed once, and sentences that are equal are 1 without being computed: on a good recogniser's
    output that is most of the work.

    Args:
        model: minilm-l6, a folder, a name that bert-score knows, or a hub id; None: what is at hand. See `berts.find_source`.
        layer: see `berts.load_scoring_bert`.
        language: whose model and baseline.
        batch_size: sentences that the model reads at once; half as many pairs.
        kept: a file where the scores are kept as they are computed, and read from; see `KeptScores`.
        progress: told how many of the pairs that are neither equal nor empty are done.

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
    differing = {pair for pair in found if pair[0] != pair[1] and all(pair)}
    progress = progress or EvaluationProgress(quiet=True).counting("BERTScore", "pairs")
    found |= _known(bert, differing, batch_size, kept, progress)
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


def _known(
    bert: ScoringBert, pairs: set[Pair], batch_size: int, path: Path | None, progress: Counting
) -> dict[Pair, np.ndarray]:
    """`[3]` of each pair: kept ones read, the others computed and kept."""
    kept = None if path is None else KeptScores(path, _depends_on(bert, batch_size))
    known = {} if kept is None else {pair: np.array(row) for pair, row in kept.find(pairs).items()}
    if known:
        progress.say(f"BERTScore: {len(known):,} of {len(pairs):,} pairs are known from {path}")
    try:
        for some in _batches(pairs - known.keys(), max(1, batch_size // 2)):
            progress.advance(len(known), len(pairs))
            values = _score(bert, some, batch_size)
            if kept is not None:
                kept.append(some, values.tolist())
            known |= zip(some, values, strict=True)
    except KeyboardInterrupt:
        if kept is not None:
            progress.say(f"BERTScore: {len(known):,} of {len(pairs):,} pairs are kept in {path}")
        raise
    progress.advance(len(known), len(pairs))
    return known


def _batches(pairs: set[Pair], size: int) -> list[list[Pair]]:
    """Pairs of like lengths together. Without some of its batches a set of pairs gives the others again."""
    ordered = sorted(pairs, key=lambda pair: (max(map(len, pair)), pair))
    batches = [ordered[begin : begin + size] for begin in range(0, len(ordered), size)]
    random.Random(0).shuffle(batches)  # long and short ones mixed: the first tell how long all will take
    return batches


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


def _depends_on(bert: ScoringBert, batch_size: int) -> dict[str, Any]:
    """All that values depend on beside the texts; the batch and the device in the last bits."""
    return {
        "signature": _signature(bert, False),
        "bert": bert.fingerprint,
        "torch": version("torch"),
        "device": next(bert.model.parameters()).device.type,
        "batch_size": batch_size,
    }


def _signature(bert: ScoringBert, rescaled: bool) -> str:
    from bert_score.utils import get_hash

    return get_hash(bert.shown, bert.layer, False, rescaled, False, False)
