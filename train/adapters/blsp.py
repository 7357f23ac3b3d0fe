"""BLSP's adapter (Wang et al. 2023, "Bootstrapping language-speech pre-training"): an eighth of the frames, then a bottleneck."""

from dataclasses import dataclass
from typing import ClassVar

from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig
from encodeonce.train.adapters.checks import check_counts, check_dropout, check_kernel
from encodeonce.train.adapters.convolution import Convolutions
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class BLSPConfig(AdapterConfig):
    """Convolutions with stride 2 and GELU, and LayerNorm, down, GELU, up with a residual path around."""

    name: ClassVar[str] = "blsp"
    rate_options: ClassVar[tuple[str, ...]] = ("convolutions",)
    convolutions: int = 3
    """Each halves the frames."""
    kernel: int = 5
    hidden: int = 1024
    """Width of the convolutions and of the embeddings."""
    bottleneck: int = 512
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self, "convolutions", "hidden", "bottleneck")
        check_kernel(self)
        check_dropout(self)

    def build(self, width: int, vocabulary: int | None = None) -> Adapter:
        return BLSPAdapter(width, self)


class BLSPAdapter(Adapter):
    """Strided convolutions and a bottleneck."""

    def __init__(self, width: int, config: BLSPConfig) -> None:
        super().__init__()
        self.width = hidden = config.hidden
        self.convolutions = Convolutions(width, hidden, config.kernel, (2,) * config.convolutions)
        self.bottleneck = nn.Sequential(
            nn.LayerNorm(hidden),
            nn.Linear(hidden, config.bottleneck),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.bottleneck, hidden),
        )

    def forward(self, features: Tensor, lengths: Tensor) -> Adapted:
        frames, lengths = self.convolutions(features, lengths, self.run)
        return Adapted(frames + self.run(self.bottleneck, frames), lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return self.convolutions.lengths(lengths)
