"""When the words of a written text are said: the text aligned with a CTC over characters, whoever wrote it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from encodeonce.evaluate.attention.alignment import Word
from encodeonce.evaluate.attention.references import force_align, load_aligner
from encodeonce.evaluate.decoding.options import tells_characters
from encodeonce.evaluate.decoding.posteriors import alphabet_of, batch_posteriors
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.train.checks import writers_of
from encodeonce.train.config import TrainConfig
from encodeonce.train.model import AdapterModel
from encodeonce.train.objectives.ctc import CTC
from torch import Tensor

MANY_FRAMES = 1 << 20
"""So many that an adapter's windows at the edges no longer count."""


@dataclass(frozen=True, slots=True)
class Aligned:
    """The words of an utterance, in seconds from its beginning; or none, and the reason."""

    words: tuple[Word, ...] | None = None
    reason: str | None = None


def check_words(config: TrainConfig) -> None:
    """Refuse a training that has no CTC over characters, and a machine without torchaudio.

    Raises:
        EvaluationError: it was trained for something else, or torchaudio does not load.
    """
    if tells_characters(config):
        load_aligner()
        return
    ctc = config.objectives.ctc
    trained = writers_of(config)
    what = f"was trained for {', '.join(trained)}" if ctc is None else f"has a CTC over others (units={ctc.units})"
    raise EvaluationError(
        f"words: their times come from CTC over characters, and this checkpoint {what}; leave words out, or train with "
        f"objectives.ctc.units=characters, beside another objective where need be"
    )


class WordAligner:
    """Aligns texts with what a model's CTC hears.

    Args:
        model: in evaluation mode, with CTC over characters (`check_words`).
        frame_seconds: from one stored frame to the next.
    """

    def __init__(self, model: AdapterModel, frame_seconds: float) -> None:
        self._model, self._alphabet = model, alphabet_of(model)
        self._seconds = frame_seconds * frames_per_emission(model)

    def align(self, outputs: Sequence[Tensor], lengths: Tensor, texts: Sequence[str]) -> list[Aligned]:
        """The words of each utterance's text.

        Args:
            outputs: `[B, T, D]` features or `[B, T, K]` codes, one tensor a stored output, on the model's device.
            lengths: `[B]` frames, there too.
            texts: `[B]`, words between spaces.
        """
        heard = batch_posteriors(self._model, outputs, lengths)
        return [self._one(shares, text) for shares, text in zip(heard, texts, strict=True)]

    def _one(self, shares: np.ndarray, text: str) -> Aligned:
        try:
            return Aligned(tuple(force_align(shares, self._alphabet, text, self._seconds)))
        except EvaluationError as error:
            return Aligned(reason=str(error))


def frames_per_emission(model: AdapterModel) -> float:
    """Stored frames from one emission of a model's CTC to the next."""
    objective = model.objectives["ctc"]
    assert isinstance(objective, CTC)
    embeddings = model.adapter.output_lengths(model.input.output_lengths(torch.tensor([MANY_FRAMES])))
    return MANY_FRAMES / (int(embeddings) * objective.emissions)
