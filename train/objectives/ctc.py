"""CTC (Graves et al. 2006) on an adapter's embeddings: over units of text, or over the frozen language model's own tokens."""

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

import torch
from encodeonce.train.adapters.base import Adapted, Adapter
from encodeonce.train.adapters.compressed import Compressed
from encodeonce.train.objectives.base import Objective, Spoken, Tokens
from encodeonce.train.objectives.temperature import Temperature
from torch import Tensor, nn
from torch.nn import functional as F

BLANK = 0
"""The class between units: the place of [PAD] in every vocabulary, which no text holds."""


class UnitHead(nn.Module):
    """A linear map to the ids of a tokenizer, several emissions for an embedding where it makes fewer embeddings than there are units.

    Embeddings `[B, N, width]` become logits `[B, N * emissions, classes]`.
    """

    def __init__(self, width: int, classes: int, emissions: int = 1) -> None:
        super().__init__()
        self.emissions = emissions
        self.linear = nn.Linear(width, emissions * classes)

    def forward(self, embeddings: Tensor) -> Tensor:
        batch, places, _ = embeddings.shape
        return self.linear(embeddings).view(batch, places * self.emissions, -1)  # [B, N, E * C] -> [B, N * E, C]


class RowHead(nn.Module):
    """Cosines to embedding rows of the frozen language model, over a learned temperature; the blank has a row of its own, a learned one.

    What it teaches `projection` is what a soft prompt needs: embeddings that lie where the language model's own tokens lie. Their length is
    left free. Embeddings `[B, N, width]` become logits `[B, N, 1 + V]`.

    Args:
        projection: the map of the soft prompt, `width -> W`; it is another's submodule, not this one's.
        rows: `[V, W]`, of the tokens that the training texts hold; frozen, and not in a checkpoint.
        ids: `[V]`, the language model's ids of these rows: class i + 1 is `ids[i]`.
    """

    rows: Tensor
    emissions = 1

    def __init__(self, projection: nn.Module, rows: Tensor, ids: Sequence[int], temperature: float = 0.07) -> None:
        super().__init__()
        self._projection = (projection,)
        self.register_buffer("rows", F.normalize(rows.detach().float(), dim=-1), persistent=False)
        self.blank = nn.Parameter(torch.randn(1, rows.shape[1]) * rows.shape[1] ** -0.5)
        self.temperature = Temperature(temperature)
        self._classes = {unit: number for number, unit in enumerate(ids, BLANK + 1)}
        self._units = tuple(ids)

    def forward(self, embeddings: Tensor) -> Tensor:
        projected = self._projection[0](embeddings)
        with torch.autocast(projected.device.type, enabled=False):
            rows = torch.cat((F.normalize(self.blank.float(), dim=-1), self.rows))
            return self.temperature(F.normalize(projected.float(), dim=-1) @ rows.T)

    def encode(self, ids: Iterable[int]) -> list[int]:
        """The classes of the language model's ids; those without a row are left out."""
        return [self._classes[unit] for unit in ids if unit in self._classes]

    def decode(self, classes: Iterable[int]) -> list[int]:
        """The language model's ids of classes."""
        return [self._units[number - 1] for number in classes]


class CTC(Objective):
    """The likelihood of the text's units in order over all alignments with the embeddings, blanks between them.

    Tokens are classes of the head: ids of the tokenizer, or what `RowHead.encode` gives. Inputs with fewer emissions than
    `least_frames` have an infinite loss: they are to be left out beforehand (`fits`).

    Args:
        head: None where the adapter has one of its own, which it merges frames by (`Compressed`).
    """

    name = "ctc"
    reasonable = (
        "ln(classes) for every emission, summed, at the beginning, so 3.5 times emissions over characters; "
        "2.9 nats a character where only blanks are emitted; learnt below 0.5"
    )

    def __init__(self, head: UnitHead | RowHead | None) -> None:
        super().__init__()
        self.head = head

    @property
    def emissions(self) -> int:
        """Of each embedding."""
        return 1 if self.head is None else self.head.emissions

    def count(self, tokens: Tokens) -> int:
        """Units; an empty text, whose loss is that of blanks alone, counts as one."""
        return int(tokens.lengths.clamp(min=1).sum())

    def forward(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> Tensor:
        logits, emissions = self.logits(spoken.adapted)
        log_shares = logits.float().log_softmax(2).transpose(0, 1)  # [N * E, B, C]
        return F.ctc_loss(log_shares, tokens.ids, emissions, tokens.lengths, BLANK, reduction="sum")

    @torch.no_grad()
    def decode(self, adapted: Adapted) -> list[list[int]]:
        """The units of the best path: the best class of each emission, repetitions once, blanks not at all."""
        logits, emissions = self.logits(adapted)
        best = logits.argmax(2).tolist()
        return [collapsed(row[:length]) for row, length in zip(best, emissions.tolist(), strict=True)]

    def logits(self, adapted: Adapted) -> tuple[Tensor, Tensor]:
        """Of each emission, `[B, N * E, C]`, and how many each utterance has, `[B]`."""
        if self.head is not None:
            return self.head(adapted.embeddings), adapted.lengths * self.head.emissions
        assert isinstance(adapted, Compressed)
        return adapted.logits, adapted.frames.lengths


def collapsed(classes: Iterable[int]) -> list[int]:
    """Units of a path of classes."""
    return [number for number, _ in groupby(classes) if number != BLANK]


def least_frames(units: Sequence[int]) -> int:
    """Emissions that CTC needs for units: one each, and a blank between equal neighbours."""
    return len(units) + sum(a == b for a, b in pairwise(units))


def fits(units: Sequence[int], emissions: int) -> bool:
    """Whether units can be aligned with so many emissions (embeddings times the head's emissions for each)."""
    return least_frames(units) <= emissions
