"""What a trained CTC objective says of utterances: log posteriors of characters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from encodeonce.evaluate.decoding.batches import utterance_batches
from encodeonce.store.reader import FeatureStore
from encodeonce.store.streaming.where import matching
from encodeonce.train.checkpoint import load_checkpoint
from encodeonce.train.errors import TrainingError
from encodeonce.train.model import AdapterModel, open_model
from encodeonce.train.objectives.ctc import BLANK, CTC
from torch import Tensor


@dataclass(frozen=True)
class Posteriors:
    """Log posteriors of characters, by utterance.

    Args:
        alphabet: the character of each class, `[C]`; nothing for the blank, which is the first, and for what is never said.
        frames: `[T, C]` float32 of each utterance, in nats.
    """

    alphabet: Sequence[str]
    frames: Mapping[str, np.ndarray]

    def of(self, ids: Sequence[str]) -> "Posteriors":
        """Those of some utterances."""
        return Posteriors(self.alphabet, {name: self.frames[name] for name in ids})


def compute_posteriors(
    checkpoint: str | Path, store: FeatureStore, where: str | None = None, device: torch.device | str = "cpu"
) -> Posteriors:
    """Log posteriors of a store's utterances, by a checkpoint with CTC over characters.

    Args:
        checkpoint: its folder; of a training's folder the best one, else the last.
        where: a condition on the table's columns; None: all utterances.

    Raises:
        TrainingError: no checkpoint, one of other features, or one without CTC over characters. StoreError: no such output or column.
    """
    found = load_checkpoint(checkpoint)
    return posteriors_of(open_model(found, store, device), store, found.fingerprints.outputs, where, device)


def posteriors_of(
    model: AdapterModel,
    store: FeatureStore,
    outputs: Sequence[str],
    where: str | None = None,
    device: torch.device | str = "cpu",
) -> Posteriors:
    """Log posteriors of a store's utterances by a model in evaluation mode; see `compute_posteriors`."""
    alphabet = alphabet_of(model)
    positions = np.arange(len(store)) if where is None else np.sort(matching(store, where))
    ids = [store.id(position) for position in positions.tolist()]
    frames = dict.fromkeys(ids, np.empty((0, len(alphabet)), np.float32))  # in the store's order
    for places, batch in utterance_batches(store, outputs, positions, device):
        for place, found in zip(places, batch_posteriors(model, batch.outputs, batch.lengths), strict=True):
            frames[ids[place]] = found
    return Posteriors(alphabet, frames)


@torch.inference_mode()
def batch_posteriors(model: AdapterModel, outputs: Sequence[Tensor], lengths: Tensor) -> list[np.ndarray]:
    """What a model's CTC says of each utterance of a batch: `[emissions, C]` float32, nats.

    Args:
        model: in evaluation mode, with CTC.
        outputs: `[B, T, D]` features or `[B, T, K]` codes, one tensor a stored output, on the model's device.
        lengths: `[B]` frames, there too.
    """
    objective = model.objectives["ctc"]
    assert isinstance(objective, CTC)
    logits, emissions = objective.logits(model.hear(outputs, lengths).adapted)
    shares = logits.float().log_softmax(2).cpu().numpy()
    return [row[:length].copy() for row, length in zip(shares, emissions.tolist(), strict=True)]


def alphabet_of(model: AdapterModel) -> list[str]:
    """The character of each class of a model's CTC.

    Raises:
        TrainingError: it has none, or its units are not characters.
    """
    if "ctc" not in model.objectives:
        raise TrainingError("this model has no CTC to decode: it is trained for " + ", ".join(model.objectives))
    vocabularies = model.vocabularies
    tokenizer = vocabularies.ctc or (vocabularies.text if vocabularies.rows is None else None)
    alphabet = [""] if tokenizer is None else [tokenizer.decode([number]) for number in range(tokenizer.size)]
    if len(alphabet) == 1 or any(len(text) > 1 for text in alphabet):
        raise TrainingError(
            "its CTC does not tell characters, which the beam search is over: train with objectives.ctc.units=characters"
        )
    alphabet[BLANK] = ""
    return alphabet
