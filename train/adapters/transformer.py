"""A small Transformer encoder: the strong baseline of CTC, and what other adapters put in front."""

from dataclasses import dataclass
from typing import ClassVar

from encodeonce.train.adapters.attention import TransformerLayer
from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig, valid
from encodeonce.train.adapters.checks import check_counts, check_dropout, check_heads, check_kernel
from encodeonce.train.adapters.convolution import Convolutions
from encodeonce.train.adapters.frames import concatenate, shorter
from encodeonce.train.positions import sinusoids
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(AdapterConfig):
    """Pre-norm layers with sinusoidal positions (Vaswani et al. 2017, Xiong et al. 2020)."""

    name: ClassVar[str] = "transformer"
    rate_options: ClassVar[tuple[str, ...]] = ("strides", "concat")
    layers: int = 4
    hidden: int = 256
    """Width of the layers and of the embeddings."""
    heads: int = 4
    feed_forward: int = 1024
    dropout: float = 0.1
    strides: tuple[int, ...] = ()
    """Convolutions before the layers, one a stride."""
    kernel: int = 3
    """Of those convolutions."""
    concat: int = 1
    """Frames that become one before the layers, after the convolutions."""

    def __post_init__(self) -> None:
        check_counts(self, "layers", "hidden", "feed_forward", "strides", "concat")
        check_heads(self, self.hidden)
        check_kernel(self)
        check_dropout(self)

    def build(self, width: int, vocabulary: int | None = None) -> Adapter:
        return TransformerAdapter(width, self)


class TransformerAdapter(Adapter):
    """Fewer frames where that is wanted, positions, layers, and LayerNorm at the end."""

    def __init__(self, width: int, config: TransformerConfig) -> None:
        super().__init__()
        self.width, self.concat, self.dropout = config.hidden, config.concat, config.dropout
        self.convolutions = Convolutions(width, config.hidden, config.kernel, config.strides)
        self.entry = nn.Linear((config.hidden if config.strides else width) * config.concat, config.hidden)
        self.layers = nn.ModuleList(
            TransformerLayer(config.hidden, config.heads, config.feed_forward, config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, features: Tensor, lengths: Tensor) -> Adapted:
        frames, lengths = self.convolutions(features, lengths, self.run)
        frames, lengths = self.entry(concatenate(frames, lengths, self.concat)), shorter(lengths, self.concat)
        frames = frames + sinusoids(frames.shape[1], self.width, frames.device)
        frames, seen = F.dropout(frames, self.dropout, self.training), valid(lengths, frames.shape[1])
        for layer in self.layers:
            frames = self.run(layer, frames, seen)
        return Adapted(self.norm(frames), lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return shorter(self.convolutions.lengths(lengths), self.concat)
