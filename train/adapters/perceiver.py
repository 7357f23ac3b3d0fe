"""The Perceiver resampler of Flamingo (Alayrac et al. 2022): a fixed number of latents that read the whole utterance."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from encodeonce.train.adapters.attention import FeedForward, attend
from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig, valid
from encodeonce.train.adapters.checks import check_counts, check_dropout, check_heads
from encodeonce.train.adapters.frames import blank
from encodeonce.train.positions import sinusoids
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class PerceiverConfig(AdapterConfig):
    """Learned latents; each layer lets them look at features and latents together, then a feed-forward."""

    name: ClassVar[str] = "perceiver"
    ordered: ClassVar[bool] = False
    latents: int = 64
    layers: int = 2
    hidden: int = 512
    """Width of the layers and of the embeddings."""
    heads: int = 8
    feed_forward: int = 2048
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_counts(self, "latents", "layers", "hidden", "feed_forward")
        check_heads(self, self.hidden)
        check_dropout(self)

    def build(self, width: int, vocabulary: int | None = None) -> Adapter:
        return PerceiverAdapter(width, self)


class PerceiverAdapter(Adapter):
    """The resampler; features come in through a linear map, and positions are added: attention alone knows no order."""

    ordered = False

    def __init__(self, width: int, config: PerceiverConfig) -> None:
        super().__init__()
        self.width = config.hidden
        self.entry = nn.Linear(width, config.hidden)
        self.latents = nn.Parameter(torch.randn(config.latents, config.hidden) * 0.02)
        self.layers = nn.ModuleList(ResamplerLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, features: Tensor, lengths: Tensor) -> Adapted:
        frames = self.entry(blank(features, lengths))
        frames = frames + sinusoids(frames.shape[1], self.width, frames.device)
        latents = self.latents.expand(len(frames), -1, -1)  # [B, N, H]
        seen = F.pad(valid(lengths, frames.shape[1]), (0, latents.shape[1]), value=True)  # [B, T + N]
        for layer in self.layers:
            latents = self.run(layer, latents, frames, seen)
        return Adapted(self.norm(latents), self.output_lengths(lengths))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return torch.full_like(lengths, len(self.latents))


class ResamplerLayer(nn.Module):
    """Latents `[B, N, H]` look at frames `[B, T, H]` and at each other; then the feed-forward."""

    def __init__(self, config: PerceiverConfig) -> None:
        super().__init__()
        width = config.hidden
        self.heads, self.dropout = config.heads, config.dropout
        self.latents_norm, self.frames_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.leave = nn.Linear(width, width, bias=False)
        self.feed_forward = FeedForward(width, config.feed_forward, config.dropout)

    def forward(self, latents: Tensor, frames: Tensor, seen: Tensor) -> Tensor:
        queries = self.latents_norm(latents)
        keys, values = self.keys_values(torch.cat([self.frames_norm(frames), queries], dim=1)).chunk(2, dim=2)
        dropout = self.dropout if self.training else 0.0
        found = self.leave(attend(self.queries(queries), keys, values, self.heads, seen, dropout))
        latents = latents + F.dropout(found, self.dropout, self.training)
        return latents + self.feed_forward(latents)
