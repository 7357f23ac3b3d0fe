"""Strided convolutions, then an MLP: what shortens speech before a language model when nothing else is wanted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig
from encodeonce.train.adapters.checks import check_counts, check_dropout, check_kernel
from encodeonce.train.adapters.frames import blank, shorter
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class ConvolutionConfig(AdapterConfig):
    """Convolutions in time with GELU, then linear, GELU, linear."""

    name: ClassVar[str] = "conv-mlp"
    rate_options: ClassVar[tuple[str, ...]] = ("strides",)
    strides: tuple[int, ...] = (2, 2)
    """Of the convolutions, one after the other."""
    kernel: int = 3
    hidden: int = 1024
    """Width of the convolutions, of the MLP and of the embeddings."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self, "strides", "hidden")
        check_kernel(self)
        check_dropout(self)

    def build(self, width: int, vocabulary: int | None = None) -> Adapter:
        return ConvolutionAdapter(width, self)


class ConvolutionAdapter(Adapter):
    """Strided convolutions and an MLP."""

    def __init__(self, width: int, config: ConvolutionConfig) -> None:
        super().__init__()
        self.width = hidden = config.hidden
        self.convolutions = Convolutions(width, hidden, config.kernel, config.strides)
        last = hidden if config.strides else width
        self.layers = nn.Sequential(
            nn.Linear(last, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, hidden)
        )

    def forward(self, features: Tensor, lengths: Tensor) -> Adapted:
        frames, lengths = self.convolutions(features, lengths, self.run)
        return Adapted(self.run(self.layers, frames), lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return self.convolutions.lengths(lengths)


class Convolutions(nn.Module):
    """Convolutions in time, one a stride, each with GELU; the first from `width` to `hidden`."""

    def __init__(self, width: int, hidden: int, kernel: int, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.strides = strides
        widths = [width, *[hidden] * len(strides)]
        self.layers = nn.ModuleList(Convolution(w, hidden, kernel, s) for w, s in zip(widths, strides, strict=False))

    def forward(self, frames: Tensor, lengths: Tensor, run: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """Frames `[B, T, D]` and their lengths `[B]` to fewer, `[B, N, H]` and `[B]`; `run` is the adapter's."""
        for layer, stride in zip(self.layers, self.strides, strict=True):
            frames, lengths = run(layer, frames, lengths), shorter(lengths, stride)
        return frames, lengths

    def lengths(self, lengths: Tensor) -> Tensor:
        """What lengths `[B]` become."""
        for stride in self.strides:
            lengths = shorter(lengths, stride)
        return lengths


class Convolution(nn.Module):
    """A convolution in time and GELU: `[B, T, D]` to `[B, ceil(T / stride), H]`, the padding blanked first."""

    def __init__(self, width: int, hidden: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, hidden, kernel, stride, padding=kernel // 2)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return F.gelu(self.convolution(blank(frames, lengths).transpose(1, 2)).transpose(1, 2))
