"""Encoders that transformers feeds with a spectrogram: what its feature extractor makes of each utterance, on the device."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.checkpoint import PREPROCESSORS, CheckpointEncoder, LoadedCheckpoint, filled_in

if TYPE_CHECKING:
    import torch


class SpectrogramEncoder(CheckpointEncoder):
    """A checkpoint with a feature extractor of transformers. Dither, which is for training, is left out."""

    extractor_class: str
    """transformers' class, named in the identity."""
    extractor_fields: Mapping[str, Any]
    """The options that change what is extracted, with the defaults of the class."""
    mels_field: str
    """The option that counts the mel filters."""

    def take_preprocessor(self, preprocessor: Mapping[str, Any], published_normalise: bool | None) -> None:
        self.extractor = filled_in(self.extractor_fields, preprocessor)
        if not preprocessor:
            self.extractor[self.mels_field] = self.mels
            self.note = f"{self.name} has no {PREPROCESSORS[0]} here: its spectrogram is that of {self.extractor_class}"
        if self.extractor[self.mels_field] != self.mels:
            raise EncoderError(
                f"{self.folder}: the preprocessor makes {self.extractor[self.mels_field]} mel filters, the model takes "
                f"{self.mels}; copy {PREPROCESSORS[0]} and config.json of one checkpoint"
            )

    @property
    @abstractmethod
    def mels(self) -> int:
        """How many mel filters the model takes."""

    def identity(self) -> dict[str, Any]:
        own = super().identity()
        own["encoder"]["config"] = {**self.config, "extractor": {"class": self.extractor_class, **self.extractor}}
        return own

    def make_extractor(self) -> Any:
        """The feature extractor of transformers."""
        import transformers

        return getattr(transformers, self.extractor_class)(**self.extractor)


class LoadedSpectrogram(LoadedCheckpoint):
    """A model that takes a spectrogram, with the feature extractor that makes it."""

    def __init__(self, encoder: SpectrogramEncoder, *arguments: Any) -> None:
        super().__init__(encoder, *arguments)
        self.extractor = encoder.make_extractor()

    @abstractmethod
    def inputs(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "torch.Tensor":
        """The spectrograms of a batch, float32, as the model takes them."""
