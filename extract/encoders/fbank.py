"""fbank: 80 log-mel filterbanks, the classical baseline; no weights."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.base import Encoder, EncoderError, LoadedEncoder, single_output
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

MELS = 80
OPTIONS: dict[str, Any] = {"num_mel_bins": MELS, "frame_length": 25.0, "frame_shift": 10.0, "dither": 0.0}
"""torchaudio.compliance.kaldi.fbank's; what is not named is Kaldi's default (povey window, 20 Hz to Nyquist, snip edges)."""
SCALE = 32768.0
"""Kaldi's waveforms have the range of 16-bit integers."""


class Fbank(Encoder):
    """Kaldi's log-mel filterbanks through torchaudio, without dither."""

    name = source = "fbank"
    samples_per_frame = 160
    receptive_field = 400
    mixes_lengths = True
    precisions = ("float32",)

    def identity(self) -> dict[str, Any]:
        options = {**OPTIONS, "scale": SCALE}
        return {
            "encoder": {"class": "torchaudio.compliance.kaldi.fbank", "config": options},
            "weights": None,
            "normalise": None,
        }

    def outputs(self, chosen: str, dtype: str) -> list[Output]:
        return single_output(chosen, "fbank", MELS, dtype, "80 log-mel filterbanks")

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedFbank":
        return LoadedFbank(device, outputs[0].what)


class LoadedFbank(LoadedEncoder):
    """torchaudio's filterbanks, an utterance at a time: a frame sees its own samples alone."""

    def __init__(self, device: str, what: str) -> None:
        try:
            import torchaudio.compliance.kaldi
        except (ImportError, OSError) as error:
            raise EncoderError(f"fbank needs torchaudio, which does not load: {error}") from error
        self.fbank = torchaudio.compliance.kaldi.fbank
        self.device, self.what = device, what

    def forward(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "dict[str, torch.Tensor]":
        import torch

        audio = audio.to(self.device) * SCALE
        rows = [
            self.fbank(row[None, :n], sample_frequency=16000, **OPTIONS) for row, n in zip(audio, lengths, strict=True)
        ]
        return {self.what: torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)}
