"""A few frames as one, through one hidden layer: SLAM-ASR's projector.

Ma et al. 2024, "An embarrassingly simple approach for LLM with strong ASR capacity".
"""

from dataclasses import dataclass
from typing import ClassVar

from encodeonce.train.adapters.base import Adapted, Adapter, AdapterConfig
from encodeonce.train.adapters.checks import check_counts, check_dropout
from encodeonce.train.adapters.frames import concatenate, shorter
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ConcatConfig(AdapterConfig):
    """SLAM-ASR's projector is linear, ReLU, linear: the last is the language model's own projection into its width."""

    name: ClassVar[str] = "concat-mlp"
    rate_options: ClassVar[tuple[str, ...]] = ("concat",)
    concat: int = 5
    """Frames that become one; zeros fill up the last one."""
    hidden: int = 2048
    """Width of the embeddings."""
    layer_norm: bool = False
    """LayerNorm on the features."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_counts(self, "concat", "hidden")
        check_dropout(self)

    def build(self, width: int, vocabulary: int | None = None) -> Adapter:
        return ConcatAdapter(width, self)


class ConcatAdapter(Adapter):
    """Linear and ReLU on a few frames after each other."""

    def __init__(self, width: int, config: ConcatConfig) -> None:
        super().__init__()
        self.width, self.concat = config.hidden, config.concat
        self.norm = nn.LayerNorm(width) if config.layer_norm else nn.Identity()
        linear = nn.Linear(config.concat * width, config.hidden)
        self.layers = nn.Sequential(linear, nn.ReLU(), nn.Dropout(config.dropout))

    def forward(self, features: Tensor, lengths: Tensor) -> Adapted:
        together = concatenate(self.norm(features), lengths, self.concat)  # [B, N, concat * D]
        return Adapted(self.run(self.layers, together), self.output_lengths(lengths))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        return shorter(lengths, self.concat)
