"""The interface of a recogniser: audio of any rate and length in, text out.

Decoding is fixed, so that two runs give the same text: float32, beams of 5 for models that generate (OpenAI's choice for Whisper,
and the pipeline's), the best path for CTC, no sampling and no second try at a higher temperature.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.extract.audio import AudioError, resample

BEAMS = 5
WINDOW_SECONDS = 30.0
"""What Whisper sees at once. Longer audio goes window by window: Whisper by its own timestamps, other models in windows that overlap."""
LEAST_SECONDS = 0.1
"""Shorter audio is padded with zeros to this: the convolutions of CTC models need 25 ms."""


class Recogniser(ABC):
    """A loaded recogniser.

    Attributes:
        name: the hub id or the folder's name; no path.
        sample_rate: samples a second of the audio it takes.
        signature: its name, how it decodes, and the versions of what runs it.
    """

    name: str
    sample_rate: int
    signature: str

    def transcribe(self, audio: Sequence[np.ndarray], sample_rate: int) -> list[str]:
        """The text of each utterance, `[samples]` float32, full scale -1 to 1; what one gives does not depend on the others.

        Audio of another rate is resampled as extract does. No samples give no text.

        Raises:
            EvaluationError: audio that is not one channel of finite samples, or that cannot be resampled.
        """
        return [self._text(self._prepare(number, samples, sample_rate)) for number, samples in enumerate(audio)]

    def _prepare(self, number: int, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            what = "holds NaN or infinity" if samples.ndim == 1 else f"has shape {samples.shape}"
            raise EvaluationError(f"audio {number} {what}; give one channel of finite samples, shape [samples]")
        try:
            return resample(samples, sample_rate, self.sample_rate)
        except AudioError as error:
            raise EvaluationError(f"audio {number}: {error}") from error

    def _text(self, samples: np.ndarray) -> str:
        if not len(samples):
            return ""
        lacking = int(LEAST_SECONDS * self.sample_rate) - len(samples)
        return self.recognise(np.pad(samples, (0, lacking)) if lacking > 0 else samples).strip()

    @abstractmethod
    def recognise(self, samples: np.ndarray) -> str:
        """The text of `[samples]` at this recogniser's rate."""


def check_language(name: str, language: str, known: Sequence[str]) -> None:
    """Refuse a language that a Whisper was not trained for."""
    if language not in known:
        raise EvaluationError(f"{name} knows no language {language!r}; it knows {', '.join(sorted(known))}")


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
