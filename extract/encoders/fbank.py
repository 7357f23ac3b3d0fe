"""fbank: 80 log-mel filterbanks, the classical baseline; no weights. And what it shares with mfcc."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.base import Encoder, EncoderError, LoadedEncoder, single_output
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

OPTIONS: dict[str, Any] = {"num_mel_bins": 80, "frame_length": 25.0, "frame_shift": 10.0, "dither": 0.0}
"""torchaudio.compliance.kaldi.fbank's; what is not named is Kaldi's default (povey window, 20 Hz to Nyquist, snip edges)."""


class KaldiFeatures(Encoder):
    """Features by a function of torchaudio.compliance.kaldi, which has the name of the encoder.

    Attributes:
        options: of the function.
        scale: what the samples, in [-1, 1], are multiplied with.
        width: numbers in a frame.
        what: what the output holds.
    """

    samples_per_frame = 160
    receptive_field = 400
    mixes_lengths = True
    precisions = ("float32",)
    options: Mapping[str, Any]
    scale: float
    width: int
    what: str

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": {
                "class": f"torchaudio.compliance.kaldi.{self.name}",
                "config": {**self.options, "scale": self.scale},
            },
            "weights": None,
            "normalise": None,
        }

    def outputs(self, chosen: str, dtype: str) -> list[Output]:
        return single_output(chosen, self.name, self.width, dtype, self.what)

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedKaldi":
        return LoadedKaldi(self, device)


class Fbank(KaldiFeatures):
    """Kaldi's log-mel filterbanks, without dither, of a waveform in the range of 16-bit integers, as Kaldi's are."""

    name = source = "fbank"
    options: Mapping[str, Any] = OPTIONS
    scale = 32768.0
    width = 80
    what = "80 log-mel filterbanks"


class LoadedKaldi(LoadedEncoder):
    """torchaudio's function, an utterance at a time: a frame sees its own utterance's samples alone."""

    def __init__(self, encoder: KaldiFeatures, device: str) -> None:
        try:
            import torchaudio.compliance.kaldi
        except (ImportError, OSError) as error:
            raise EncoderError(f"{encoder.name} needs torchaudio, which does not load: {error}") from error
        self.function = getattr(torchaudio.compliance.kaldi, encoder.name)
        self.encoder, self.device = encoder, device

    def forward(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "dict[str, torch.Tensor]":
        import torch

        audio = audio.to(self.device) * self.encoder.scale
        rows = [self.features(row[None, :n]) for row, n in zip(audio, lengths, strict=True)]
        return {self.encoder.what: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}

    def features(self, samples: "torch.Tensor") -> "torch.Tensor":
        """`[T, D]` of one utterance `[1, samples]`."""
        return self.function(samples, sample_frequency=self.encoder.sample_rate, **self.encoder.options)
