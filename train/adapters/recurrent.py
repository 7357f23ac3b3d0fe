"""A bidirectional LSTM: the baseline of CTC (Graves et al. 2013, "Speech recognition with deep recurrent neural networks")."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig, valid
from encodeonce.train.adapters.checks import check_counts, check_dropout
from encodeonce.train.adapters.frames import concatenate, shorter
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(AdapterConfig):
    """Layers of LSTMs, one in each direction."""

    name: ClassVar[str] = "bilstm"
    rate_options: ClassVar[tuple[str, ...]] = ("concat",)
    layers: int = 1
    hidden: int = 256
    """Of each direction; embeddings have twice the width."""
    concat: int = 1
    """Frames that become one before the first layer."""
    dropout: float = 0.1
    """After each layer."""

    def __post_init__(self) -> None:
        check_counts(self, "layers", "hidden", "concat")
        check_dropout(self)

    def build(self, width: int, vocabulary: int | None = None) -> Adapter:
        return RecurrentAdapter(width, self)


class RecurrentAdapter(Adapter):
    """Bidirectional LSTMs over the valid frames alone."""

    def __init__(self, width: int, config: RecurrentConfig) -> None:
        super().__init__()
        self.width, self.concat = 2 * config.hidden, config.concat
        widths = [config.concat * width, *[self.width] * (config.layers - 1)]
        self.layers = nn.ModuleList(BothWays(w, config.hidden, config.dropout) for w in widths)

    def forward(self, features: Tensor, lengths: Tensor) -> Adapted:
        frames = concatenate(features, lengths, self.concat)
        lengths = self.output_lengths(lengths)
        mirrored = mirror(lengths, frames.shape[1])
        for layer in self.layers:
            frames = self.run(layer, frames, mirrored)
        return Adapted(frames, lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return shorter(lengths, self.concat)


class BothWays(nn.Module):
    """One layer: frames `[B, T, D]`, and where each has its mirror image `[B, T]`, to `[B, T, 2 * hidden]`.

    The way back reads each utterance from its own last frame, so that on both ways padding comes after everything and changes
    nothing. A `PackedSequence` would do the same, on a CPU in five times the time.
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.forth = nn.LSTM(width, hidden, batch_first=True)
        self.back = nn.LSTM(width, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor, mirrored: Tensor) -> Tensor:
        back = take(self.back(take(frames, mirrored))[0], mirrored)
        return self.dropout(torch.cat([self.forth(frames)[0], back], 2))


def mirror(lengths: Tensor, most: int) -> Tensor:
    """Places `[B, most]` that reverse the first `lengths` `[B]` frames of each utterance, and leave the others where they are."""
    places = torch.arange(most, device=lengths.device)
    return torch.where(valid(lengths, most), lengths[:, None] - 1 - places, places)


def take(frames: Tensor, places: Tensor) -> Tensor:
    """Of frames `[B, T, D]` those at places `[B, T]`."""
    return frames.gather(1, places[..., None].expand_as(frames))
