"""The interface of objectives: what is spoken and what is said in, a sum of losses out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from encodeonce.train.adapters.base import Adapted, Adapter
from torch import Tensor, nn


@dataclass(frozen=True)
class Spoken:
    """A batch as the adapter sees it, and what it made of it.

    Args:
        features: `[B, T, D]`, after layer mixing, code embedding, masking.
        lengths: `[B]` frames.
        adapted: the adapter's query-only or only pass; a Q-Former's is `Queries`, with the keys and values that generation reads.
    """

    features: Tensor
    lengths: Tensor
    adapted: Adapted


@dataclass(frozen=True)
class Tokens:
    """What is said: token ids `[B, L]` int64 without any special token, zero after each text's `lengths` `[B]`."""

    ids: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, texts: Sequence[Sequence[int] | np.ndarray], device: torch.device | str = "cpu") -> "Tokens":
        """Padded tokens of a few texts."""
        lengths = np.fromiter((len(text) for text in texts), np.int64, len(texts))
        ids = np.zeros((len(texts), max(1, lengths.max(initial=0))), np.int64)
        for row, text in zip(ids, texts, strict=True):
            row[: len(text)] = text
        return cls(torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device))

    def __len__(self) -> int:
        return len(self.ids)


class Objective(nn.Module, ABC):
    """A loss with its own head, where it needs one.

    A step's loss is the sum of `forward` over its micro-batches and ranks over the sum of `count`: the same however a global batch is cut.
    """

    name: str
    """In configurations and metrics: stc, stm, stg, ctc, llm."""
    reasonable: str
    """What a reasonable value is: at the beginning, and once it has learnt."""

    @abstractmethod
    def forward(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> Tensor:
        """The sum of the losses, in nats, over the `count(tokens)` elements of the batch: 0-dimensional, float32."""

    @abstractmethod
    def count(self, tokens: Tokens) -> int:
        """What the sum is divided by: predicted tokens, or pairs; known before anything is computed."""
