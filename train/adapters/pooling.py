"""An M-Adapter (Zhao et al. 2022, "M-Adapter: modality adaptation for end-to-end speech-to-text translation"): attention that pools."""

from dataclasses import dataclass
from typing import ClassVar

from encodeonce.train.adapters.attention import FeedForward, attend
from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig, valid
from encodeonce.train.adapters.checks import check_counts, check_dropout, check_heads, check_kernel
from encodeonce.train.adapters.frames import blank, shorter
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 2
"""Of every layer."""


@dataclass(frozen=True, kw_only=True)
class PoolingConfig(AdapterConfig):
    """Layers of self-attention whose queries, keys and values are pooled by convolutions; each halves the frames."""

    name: ClassVar[str] = "m-adapter"
    rate_options: ClassVar[tuple[str, ...]] = ("layers",)
    layers: int = 3
    hidden: int = 512
    """Width of the layers and of the embeddings."""
    heads: int = 8
    feed_forward: int = 2048
    kernel: int = 3
    """Of the pooling convolutions."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_counts(self, "layers", "hidden", "feed_forward")
        check_heads(self, self.hidden)
        check_kernel(self)
        check_dropout(self)

    def build(self, width: int, vocabulary: int | None = None) -> Adapter:
        return PoolingAdapter(width, self)


class PoolingAdapter(Adapter):
    """Layers of pooled attention, and LayerNorm at the end."""

    def __init__(self, width: int, config: PoolingConfig) -> None:
        super().__init__()
        self.width = config.hidden
        self.entry = nn.Linear(width, config.hidden)
        self.layers = nn.ModuleList(PoolingLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, features: Tensor, lengths: Tensor) -> Adapted:
        frames = self.entry(features)
        for layer in self.layers:
            frames, lengths = self.run(layer, frames, lengths), shorter(lengths, STRIDE)
        return Adapted(self.norm(frames), lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        for _ in self.layers:
            lengths = shorter(lengths, STRIDE)
        return lengths


class PoolingLayer(nn.Module):
    """Frames `[B, T, H]` to `[B, ceil(T / 2), H]`: pooled attention with a pooled residual path, then a feed-forward."""

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__()
        width = config.hidden
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = nn.LayerNorm(width)
        self.entry = nn.Linear(width, 3 * width)
        self.pools = nn.ModuleList(Pool(width, config.kernel) for _ in range(4))
        self.leave = nn.Linear(width, width)
        self.feed_forward = FeedForward(width, config.feed_forward, config.dropout)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        inputs = [frames, *self.entry(self.norm(frames)).chunk(3, dim=2)]
        kept, queries, keys, values = (pool(x, lengths) for pool, x in zip(self.pools, inputs, strict=True))
        seen = valid(shorter(lengths, STRIDE), keys.shape[1])
        dropout = self.dropout if self.training else 0.0
        found = self.leave(attend(queries, keys, values, self.heads, seen, dropout))
        frames = kept + F.dropout(found, self.dropout, self.training)
        return frames + self.feed_forward(frames)


class Pool(nn.Module):
    """A convolution in time with stride 2: `[B, T, H]` to `[B, ceil(T / 2), H]`, the padding blanked first."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel, STRIDE, padding=kernel // 2, bias=False)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        return self.convolution(blank(frames, lengths).transpose(1, 2)).transpose(1, 2)
