"""What a Q-Former's contrast and matching are worth on a split: utterances and texts that find each other."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from encodeonce.evaluate.decoding.batches import utterance_batches
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.evaluation import Score
from encodeonce.evaluate.metrics.intervals import Bootstrap, Clusters
from encodeonce.evaluate.metrics.retrieval import (
    Embedded,
    Ranks,
    find_ranks,
    matching_score,
    recall_scores,
    wrong_texts,
)
from encodeonce.evaluate.retrievable import Retrievable, choose
from encodeonce.store.reader import FeatureStore
from encodeonce.train.config import DataConfig
from encodeonce.train.model import AdapterModel
from encodeonce.train.objectives.base import Objective
from encodeonce.train.objectives.contrastive import Contrastive
from encodeonce.train.objectives.matching import Matching
from torch import Tensor

Kind = TypeVar("Kind", bound=Objective)
TEXTS_PER_BATCH = 64
MOST = 10_000
"""Utterances at most, for time and memory go with the square of their number; of more a sample is taken."""
EXAMPLES = 20
"""Utterances that are listed, those that find their text last."""


def retrieval_scores(
    model: AdapterModel,
    store: FeatureStore,
    outputs: Sequence[str],
    where: str | None = None,
    *,
    data: DataConfig,
    device: torch.device | str = "cpu",
    most: int = MOST,
    seed: int = 0,
) -> tuple[dict[str, Score], dict[str, Any]]:
    """Retrieval by the contrastive objective, and accuracy of the matching objective, of a model in evaluation mode.

    Speech and text are as near as the largest cosine between any query and the text. A pair for matching is an utterance with its
    text, or with a wrong one of the split: each of the others as likely as the next (`matching_accuracy`; the seed draws them), or
    the one that the contrast finds nearest (`matching_accuracy_hard`; where the model was trained for both).

    Args:
        outputs: of the store, in the order in which the model reads them: `checkpoint.fingerprints.outputs`.
        where: a condition on the table's columns; None: all utterances.
        data: which texts, and whether in lower case: `checkpoint.config.data`.
        most: utterances at most; of more, a sample that depends on their ids and the seed alone.

    Returns:
        Scores by name, those of `retrieval.recall_scores` first; and a table for `Evaluation.details["retrieval"]`.

    Raises:
        EvaluationError: the model is trained for neither objective, or no utterance of the split has a text that it can read.
        TrainingError, StoreError: no such text, output or column.
    """
    contrast, match = _objective(model, Contrastive), _objective(model, Matching)
    if contrast is None and match is None:
        raise EvaluationError(
            "retrieval needs contrast (stc) or matching (stm), and this checkpoint has neither: it is trained for "
            + ", ".join(model.objectives)
        )
    spoken = choose(model, store, where, data, most, seed)
    bootstrap = Bootstrap(Clusters.find(spoken.speakers, len(spoken.ids)))
    about = f"{data.target}{'|lower' if data.lower else ''}|utterances:{len(spoken.ids)}|texts:{len(spoken.texts)}"
    scores: dict[str, Score] = {}
    ranks = None
    if contrast is not None:
        ranks = find_ranks(embed(model, store, outputs, spoken, device))
        scores |= recall_scores(ranks, f"retrieval|max-over-queries|ties:last|{about}", bootstrap)
    if match is not None and len(spoken.texts) > 1:
        wrong = wrong_texts(spoken.text_of, len(spoken.texts), seed)
        pairings = [spoken.text_of, wrong, *(() if ranks is None else (ranks.hardest,))]
        right, *others = match_probabilities(model, store, outputs, spoken, pairings, device)
        kinds = (("matching_accuracy", f"any|seed:{seed}"), ("matching_accuracy_hard", "nearest-by-contrast"))
        for (name, kind), told in zip(kinds, others, strict=False):
            scores[name] = matching_score(name, right, told, f"matching|wrong:{kind}|{about}", bootstrap)
    return scores, {"retrieval": _table(spoken, ranks)}


@torch.inference_mode()
def embed(
    model: AdapterModel, store: FeatureStore, outputs: Sequence[str], spoken: Retrievable, device: torch.device | str
) -> Embedded:
    """Utterances and texts where the contrast compares them."""
    contrast = _objective(model, Contrastive)
    assert contrast is not None
    speech: list[np.ndarray] = [np.empty(0)] * len(spoken.ids)
    for rows, features, lengths in _batches(model, store, outputs, spoken, device):
        heard = model.adapter(features, lengths)
        projected, counts = contrast.project_speech(heard).cpu().numpy(), heard.lengths.tolist()
        for row, queries, count in zip(rows, projected, counts, strict=True):
            speech[row] = queries[:count]
    text = np.empty((len(spoken.texts), contrast.text.out_features), np.float32)
    order = sorted(range(len(text)), key=lambda number: len(spoken.tokens[number]))
    for begin in range(0, len(order), TEXTS_PER_BATCH):
        numbers = order[begin : begin + TEXTS_PER_BATCH]
        text[numbers] = contrast.project_text(model.adapter, spoken.tokens_of(numbers, device)).cpu().numpy()
    return Embedded(np.concatenate(speech), np.array([len(queries) for queries in speech]), text, spoken.text_of)


@torch.inference_mode()
def match_probabilities(
    model: AdapterModel,
    store: FeatureStore,
    outputs: Sequence[str],
    spoken: Retrievable,
    pairings: Sequence[np.ndarray],
    device: torch.device | str,
) -> np.ndarray:
    """How probably a text belongs to each utterance, by the matching objective: `[P, N]` for P times a text for each, `[N]`."""
    match = _objective(model, Matching)
    assert match is not None
    found = np.empty((len(pairings), len(spoken.ids)))
    for rows, features, lengths in _batches(model, store, outputs, spoken, device):
        for probabilities, numbers in zip(found, pairings, strict=True):
            tokens = spoken.tokens_of(numbers[rows].tolist(), device)
            probabilities[rows] = match.probabilities(model.adapter, features, lengths, tokens).cpu().numpy()
    return found


def _batches(
    model: AdapterModel, store: FeatureStore, outputs: Sequence[str], spoken: Retrievable, device: torch.device | str
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Rows of `spoken`, and what the adapter reads of them: features `[B, T, D]` and lengths `[B]`."""
    for rows, batch in utterance_batches(store, outputs, store.indices(spoken.ids), device):
        yield rows, *model.input(batch.outputs, batch.lengths)


def _objective(model: AdapterModel, kind: type[Kind]) -> Kind | None:
    return next((found for found in model.objectives.values() if isinstance(found, kind)), None)


def _table(spoken: Retrievable, ranks: Ranks | None) -> dict[str, Any]:
    table: dict[str, Any] = {
        "utterances": len(spoken.ids),
        "texts": len(spoken.texts),
        "without_text": spoken.without_text,
        "not_drawn": spoken.beyond,
        "too_long": spoken.too_long,
    }
    if ranks is None:
        return table
    worst = np.argsort(-ranks.speech_to_text, kind="stable")[:EXAMPLES].tolist()
    return table | {
        "median_rank_speech_to_text": float(np.median(ranks.speech_to_text)),
        "median_rank_text_to_speech": float(np.median(ranks.text_to_speech)),
        "examples": [
            {
                "id": spoken.ids[row],
                "text": spoken.texts[spoken.text_of[row]],
                "rank": int(ranks.speech_to_text[row]),
                "nearest": spoken.texts[ranks.hardest[row]],
            }
            for row in worst
            if ranks.speech_to_text[row] > 1
        ],
    }
