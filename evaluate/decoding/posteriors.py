"""What a trained CTC objective says of utterances: log posteriors of characters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from encodeonce.store.reader import FeatureStore
from encodeonce.train.checkpoint import load_checkpoint
from encodeonce.train.errors import TrainingError
from encodeonce.train.model import AdapterModel, open_model
from encodeonce.train.objectives.ctc import BLANK, CTC

FRAMES_PER_BATCH = 4000


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


@torch.inference_mode()
def posteriors_of(
    model: AdapterModel,
    store: FeatureStore,
    outputs: Sequence[str],
    where: str | None = None,
    device: torch.device | str = "cpu",
) -> Posteriors:
    """Log posteriors of a store's utterances by a model in evaluation mode; see `compute_posteriors`."""
    alphabet, objective = alphabet_of(model), model.objectives["ctc"]
    assert isinstance(objective, CTC)
    frames: dict[str, np.ndarray] = {}
    stream = store.stream(
        frames_per_batch=max(FRAMES_PER_BATCH, int(store.frames.max(initial=0))),
        outputs=list(outputs),
        where=where,
        columns=(),
        shuffle="none",
        dtype="float32",
        rank=0,
        world_size=1,
    )
    for batch in stream:
        values = [torch.as_tensor(values).to(device) for values, _ in batch.outputs.values()]
        adapted = model.hear(values, torch.as_tensor(batch.lengths).to(device)).adapted
        logits, emissions = objective.logits(adapted)
        shares = logits.float().log_softmax(2).cpu().numpy()
        for name, row, length in zip(batch.ids, shares, emissions.tolist(), strict=True):
            frames[name] = row[:length].copy()
    return Posteriors(alphabet, frames)


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
