"""A stand-in for the Q-Former that a reader can check by hand: means in place of attention, exact for any padding."""

from dataclasses import dataclass

import torch
from encodeonce.train.adapters.base import Adapted, Adapter, valid
from encodeonce.train.tokenizer import Tokenizer
from torch import Tensor, nn


class Letters(Tokenizer):
    """Ids without texts."""

    size, pad, start, end, decode_start = 12, 0, 1, 2, 3

    def encode(self, text):
        return [5 + "abcdefg".index(c) for c in text]

    def decode(self, ids):
        return "".join("abcdefg"[i - 5] for i in ids)

    def save(self, folder):
        raise NotImplementedError


@dataclass(frozen=True)
class MeanQueries(Adapted):
    mean: Tensor
    """`[B, H]`, what text sees of the speech."""


class MeanFormer(Adapter):
    """Two queries for each two frames, each a map of what its utterance is like up to there; text hidden states are running means."""

    ordered = True

    def __init__(self, features: int = 4, width: int = 6, vocabulary: int = Letters.size) -> None:
        super().__init__()
        self.width = width
        self.speech = nn.Linear(features, width)
        self.words = nn.Embedding(vocabulary, width)
        self.mixed = nn.Linear(2 * width, width)
        self.out = nn.Linear(width, vocabulary)

    def output_lengths(self, lengths):
        return (lengths + 1) // 2

    def forward(self, features, lengths):
        hidden = (
            torch.tanh(self.speech(features))
            .masked_fill(~valid(lengths, features.shape[1])[..., None], 0)
            .cumsum(1)[:, ::2]
        )
        counts = self.output_lengths(lengths)
        last = hidden[torch.arange(len(lengths)), counts - 1]
        return MeanQueries(torch.sin(hidden), counts, last)

    def read(self, ids, lengths):
        mean = self.words(ids).masked_fill(~valid(lengths, ids.shape[1])[..., None], 0).sum(1) / lengths[:, None]
        return torch.sin(3 * mean[:, None] + self.words(ids))

    def match(self, features, lengths, ids, text_lengths):
        queries, text = self(features, lengths), self.read(ids, text_lengths)[:, :1]
        both = torch.cat((queries.embeddings, text.expand_as(queries.embeddings)), 2)
        return Adapted(torch.tanh(self.mixed(both)), queries.lengths)

    def write(self, ids, queries, past=None):
        before, step = past if past is not None else (torch.zeros(len(ids), self.width), 0)
        sums = before[:, None] + self.words(ids).cumsum(1)
        places = torch.arange(step + 1, step + ids.shape[1] + 1)[:, None]
        hidden = torch.sin(4 * sums / places + self.words(ids) + queries.mean[:, None])
        return hidden, (sums[:, -1], step + ids.shape[1])

    def logits(self, hidden):
        return 3 * self.out(hidden)
