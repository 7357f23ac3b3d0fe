"""Pairs of speech and text in the space where they are contrasted, and the queue of past ones."""

from dataclasses import dataclass

import torch
from encodeonce.train.adapters.base import valid
from torch import Tensor, nn


@dataclass(frozen=True)
class Pairs:
    """Projected pairs, `P` of them.

    Args:
        speech: `[P, N, W]` float32, of norm 1; the first `counts` of each row are its own.
        counts: `[P]` int64, queries of each utterance; 0: no pair stands here.
        text: `[P, W]` float32, of norm 1.
        keys: `[P]` int64, equal where texts are equal.
    """

    speech: Tensor
    counts: Tensor
    text: Tensor
    keys: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def cosines(self, others: "Pairs") -> tuple[Tensor, Tensor]:
        """The largest over queries, both `[P, M]`: of this speech with the others' texts, and of these texts with the others' speech."""
        with torch.autocast(self.speech.device.type, enabled=False):
            spoken = torch.einsum("pqw,mw->pmq", self.speech, others.text)
            said = torch.einsum("pw,mqw->pmq", self.text, others.speech)
        own = valid(self.counts, spoken.shape[2])[:, None]
        theirs = valid(
            others.counts.clamp(min=1), said.shape[2]
        )  # -inf alone would make the temperature's gradient NaN
        return spoken.masked_fill(~own, -torch.inf).amax(2), said.masked_fill(~theirs, -torch.inf).amax(2)

    def followed_by(self, others: "Pairs") -> "Pairs":
        """These and then the others, in new tensors; utterances of both have queries in the same number."""
        return Pairs(
            torch.cat((self.speech, others.speech)),
            torch.cat((self.counts, others.counts)),
            torch.cat((self.text, others.text)),
            torch.cat((self.keys, others.keys)),
        )


class Past(nn.Module):
    """The last `size` pairs of training as they were projected then, in a ring; no gradient goes through them.

    Its buffers belong to the state that a training resumes from.
    """

    speech: Tensor
    counts: Tensor
    text: Tensor
    keys: Tensor
    place: Tensor

    def __init__(self, size: int, queries: int, width: int) -> None:
        super().__init__()
        self.register_buffer("speech", torch.zeros(size, queries, width))
        self.register_buffer("counts", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("text", torch.zeros(size, width))
        self.register_buffer("keys", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def all(self) -> Pairs:
        """The whole ring; where nothing has come yet the counts are 0."""
        return Pairs(self.speech, self.counts, self.text, self.keys)

    @torch.no_grad()
    def add(self, pairs: Pairs) -> None:
        """Put pairs in the place of the oldest; those of a step that went wrong, with NaN in them, are none."""
        size, new = len(self.keys), min(len(self.keys), len(pairs))
        speech, text = pairs.speech[-new:], pairs.text[-new:]
        finite = speech.isfinite().all((1, 2)) & text.isfinite().all(1)
        places = (self.place + torch.arange(new, device=self.keys.device)) % size
        self.speech[places] = speech.nan_to_num()
        self.counts[places] = pairs.counts[-new:] * finite
        self.text[places] = text.nan_to_num()
        self.keys[places] = pairs.keys[-new:]
        self.place.copy_((self.place + new) % size)
