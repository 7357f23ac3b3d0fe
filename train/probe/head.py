"""The probe itself: one linear map from a frame to the characters that are said in it."""

import numpy as np
import torch
from encodeonce.store.moments import Moments, Usage
from torch import Tensor, nn

EMBEDDING_WIDTH = 256
LEAST_STD = 1e-5
"""Of a dimension; what hardly moves is not blown up to unit variance."""


class Normalise(nn.Module):
    """Features `[B, T, D]` with the mean and variance of the training frames taken out, dimension by dimension."""

    def __init__(self, moments: Moments) -> None:
        super().__init__()
        std = np.sqrt(moments.variance)
        self.register_buffer("mean", torch.tensor(moments.mean, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(1 / np.maximum(std, LEAST_STD), dtype=torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale


class EmbedCodes(nn.Module):
    """Codes `[B, T, K]` as the sum of an embedding for each codebook, `[B, T, 256]`; a code that training lacks adds nothing."""

    def __init__(self, usage: Usage) -> None:
        super().__init__()
        books, self.unseen = usage.counts.shape
        self.rows = self.unseen + 1
        self.register_buffer("starts", torch.arange(books) * self.rows)
        self.table = nn.EmbeddingBag(books * self.rows, EMBEDDING_WIDTH, mode="sum")
        nn.init.zeros_(self.table.weight)

    def forward(self, codes: Tensor) -> Tensor:
        rows = codes.clamp(max=self.unseen) + self.starts  # [B, T, K]
        return self.table(rows.flatten(0, 1)).unflatten(0, codes.shape[:2])


class Probe(nn.Module):
    """Log probabilities `[B, T * emissions, classes]` of an output's frames `[B, T, D]`, by one linear map.

    Args:
        seen: what the training frames are like: moments of features, usage of codes.
        classes: characters and the blank.
        emissions: of each frame.
    """

    def __init__(self, seen: Moments | Usage, classes: int, emissions: int) -> None:
        super().__init__()
        self.entry = Normalise(seen) if isinstance(seen, Moments) else EmbedCodes(seen)
        width = len(seen.mean) if isinstance(seen, Moments) else EMBEDDING_WIDTH
        self.linear = nn.Linear(width, emissions * classes)
        self.classes, self.emissions = classes, emissions

    def forward(self, frames: Tensor) -> Tensor:
        logits = self.linear(self.entry(frames))  # [B, T, emissions * classes]
        return logits.reshape(len(frames), -1, self.classes).log_softmax(2)
