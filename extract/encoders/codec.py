"""What all codecs share: codes and latents of one utterance at a time, and the way back to audio."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from encodeonce.extract.encoders.base import Encoder, EncoderError, LoadedEncoder, Quantizers, codec_outputs
from encodeonce.store.codebooks import Codebooks
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

LARGEST_CODEBOOK = 1 << 16
"""Entries that uint16 numbers."""


class Codec(Encoder):
    """A neural codec whose latents are the sum of its quantizers' vectors, known by its files.

    Audio is never cut, and each utterance of a batch runs by itself: padding would leak into convolutions, LSTMs and
    attention, and a code that lies near a border would become another one. So codes are those of the reference run on
    one utterance alone, bit for bit. A batch wins little here; on a CPU, threads take one utterance each, and compute in one
    thread: transformers' own codes differ by some percent between one thread and two (docs/codecs.md).

    Attributes:
        codebook_sizes: K of each quantizer, in the order of the columns of codes.
        width: D of the latents.
    """

    codebook_sizes: tuple[int, ...]
    width: int
    precisions = ("float32",)
    whole = True
    one_thread = True
    mixes_lengths = True
    default_outputs = "codes"

    def frames(self, samples: int) -> int:
        """The exact number of frames; a last frame that is not full counts. Audio shorter than one frame has none."""
        return -(-samples // self.samples_per_frame) if samples >= self.receptive_field else 0

    def outputs(self, chosen: str, dtype: str) -> list[Output]:
        largest = max(self.codebook_sizes)
        if largest > LARGEST_CODEBOOK:
            raise EncoderError(
                f"{self.name} has a codebook of {largest:,} entries; codes are stored as uint16, "
                f"which numbers {LARGEST_CODEBOOK:,}"
            )
        return codec_outputs(chosen, self.codebook_sizes, self.width, dtype)

    @property
    def decoded_rate(self) -> int:
        """Samples a second of the audio that it decodes."""
        return self.sample_rate

    @abstractmethod
    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedCodec":
        """Load the weights; with no outputs, to decode only."""


class LoadedCodec(LoadedEncoder):
    """A codec with its weights on a device.

    Args:
        quantizers: its codebooks, all of them.

    Attributes:
        sample_rate, decoded_rate: samples a second of what it takes and of what it decodes.
    """

    def __init__(self, codec: Codec, quantizers: Codebooks, device: str, outputs: Sequence[Output]) -> None:
        import torch

        self.name, self.sample_rate, self.decoded_rate = codec.name, codec.sample_rate, codec.decoded_rate
        self.quantizers, self.device = quantizers, torch.device(device)
        self.wanted = [Quantizers.of(output.what) for output in outputs]
        used = {number for which in self.wanted if which.kind == "latents" for number in which.numbers}
        self._tables = {number: self._table(number) for number in used}

    @abstractmethod
    def encode_one(self, audio: "torch.Tensor") -> "torch.Tensor":
        """Codes `[Q, T]` int64 of one utterance `[S]` float32 on the device, all quantizers."""

    @abstractmethod
    def audio_of_codes(self, codes: "torch.Tensor") -> "torch.Tensor":
        """Audio `[S]` of codes `[Q, T]` int64 of the first Q quantizers, on the device: the reference's own decoding."""

    @abstractmethod
    def audio_of_latents(self, latents: "torch.Tensor") -> "torch.Tensor":
        """Audio `[S]` of latents `[D, T]` float32 on the device."""

    def forward(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "dict[str, torch.Tensor]":
        import torch

        with torch.inference_mode():
            codes = [self.encode_one(row[:n].to(self.device)) for row, n in zip(audio, lengths, strict=True)]
            return {
                which.what: torch.nn.utils.rnn.pad_sequence([self._chosen(which, c) for c in codes], batch_first=True)
                for which in self.wanted
            }

    def codebooks(self, output: Output) -> Codebooks | None:
        if not output.codebook_sizes:
            return None
        return self.quantizers.only(Quantizers.of(output.what).numbers)

    def decode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Audio `[samples]` float32 of codes `[T, Q]` of the first Q quantizers.

        Raises:
            EncoderError: they are not codes of this codec.
        """
        import torch

        sizes = self.quantizers.sizes
        if codes.ndim != 2 or codes.dtype.kind not in "ui" or not len(codes) or not 1 <= codes.shape[1] <= len(sizes):
            raise EncoderError(
                f"{self.name} decodes codes [T, 1 to {len(sizes)}], not {codes.dtype} of shape {list(codes.shape)}"
            )
        for column, size in enumerate(sizes[: codes.shape[1]]):
            low, high = int(codes[:, column].min()), int(codes[:, column].max())
            if low < 0 or high >= size:
                wrong = low if low < 0 else high
                raise EncoderError(f"code {wrong} in column {column}: this codebook of {self.name} has {size} entries")
        with torch.inference_mode():
            audio = self.audio_of_codes(torch.from_numpy(codes.T.astype(np.int64)).to(self.device))
        return audio.cpu().numpy()

    def decode_latents(self, latents: np.ndarray) -> np.ndarray:
        """Audio `[samples]` float32 of latents `[T, D]`: the vectors of any of the quantizers, summed.

        Raises:
            EncoderError: they are not latents of this codec.
        """
        import torch

        width = self.quantizers.width
        if latents.ndim != 2 or latents.dtype.kind != "f" or not len(latents) or latents.shape[1] != width:
            raise EncoderError(
                f"{self.name} decodes latents [T, {width}], not {latents.dtype} of shape {list(latents.shape)}"
            )
        with torch.inference_mode():
            audio = self.audio_of_latents(torch.from_numpy(latents.T.astype(np.float32)).to(self.device))
        return audio.cpu().numpy()

    def _table(self, number: int) -> "list[torch.Tensor | None]":
        import torch

        quantizer = self.quantizers.quantizers[number]
        arrays = (quantizer.codebook, quantizer.projection, quantizer.bias)
        return [None if array is None else torch.from_numpy(array).to(self.device) for array in arrays]

    def _chosen(self, which: Quantizers, codes: "torch.Tensor") -> "torch.Tensor":
        """What an output holds of codes `[Q, T]`: `[T, Q]` int64, or the latents `[T, D]` as Codebooks.vectors has them."""
        import torch

        if which.kind == "codes":
            return codes[which.first : which.last + 1].T
        total: torch.Tensor | None = None
        for number in which.numbers:
            codebook, projection, bias = self._tables[number]
            assert codebook is not None
            vectors = torch.nn.functional.embedding(codes[number], codebook)
            if projection is not None:
                vectors = torch.nn.functional.linear(vectors, projection, bias)
            total = vectors if total is None else total + vectors
        assert total is not None
        return total
