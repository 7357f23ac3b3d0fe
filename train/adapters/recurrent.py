"""A bidirectional LSTM: the baseline of CTC (Graves et al. 2013, "Speech recognition with deep recurrent neural networks")."""

from dataclasses import dataclass
from typing import ClassVar

from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig
from encodeonce.train.adapters.checks import check_counts, check_dropout
from encodeonce.train.adapters.frames import concatenate, shorter
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(AdapterConfig):
    """Layers of LSTMs, one in each direction."""

    name: ClassVar[str] = "bilstm"
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
        on_host = lengths.cpu()  # packing wants them there; copied once for all layers
        for layer in self.layers:
            frames = self.run(layer, frames, on_host)
        return Adapted(frames, lengths)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return shorter(lengths, self.concat)


class BothWays(nn.Module):
    """One layer: frames `[B, T, D]`, lengths `[B]` on the host, to `[B, T, 2 * hidden]`, zeros after each utterance."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=frames.shape[1])
        return self.dropout(states)
