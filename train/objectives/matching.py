"""STM, speech-text matching: does this text belong to this speech?"""

from collections.abc import Callable

import torch
from encodeonce.train.adapters.base import Adapter
from encodeonce.train.objectives.base import Objective, Spoken, Tokens
from encodeonce.train.objectives.texts import framed, same_texts, text_adapter
from encodeonce.train.tokenizer import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

Similarities = Callable[[Adapter, Spoken, Tokens], Tensor]
"""Logits `[B, B]` of each utterance with each text; `Contrastive.similarities` is one."""


class Matching(Objective):
    """The image-text matching of BLIP-2 (Li et al. 2023, section 3.2) for speech.

    Of each pair of a batch three are made: itself, its speech with a wrong text, its text with a wrong speech. Queries and text see
    each other; a linear map of the mean over queries says yes or no. Wrong ones are drawn from the rank's own batch by the softmax of
    the contrastive similarities; equal texts are never wrong ones. Where a batch holds one text alone, its pairs stand without.

    Args:
        width: of the adapter's embeddings.
        similarities: what says how hard a negative is; None: all are drawn alike.
    """

    name = "stm"
    reasonable = "0.64 where the head says no to everything, two thirds being negatives; learnt below 0.3, hard negatives stay hard"

    def __init__(self, width: int, tokenizer: Tokenizer, similarities: Similarities | None = None) -> None:
        super().__init__()
        self.head = nn.Linear(width, 2)
        self.start, self.end = tokenizer.start, tokenizer.end
        self.similarities = similarities

    def count(self, tokens: Tokens) -> int:
        """Three for a pair; one, where the batch holds one text alone."""
        return len(tokens) * (3 if _texts_differ(tokens) else 1)

    def forward(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> Tensor:
        speech = text = torch.arange(len(tokens), device=tokens.ids.device)
        if _texts_differ(tokens):
            wrong_text, wrong_speech = self._negatives(adapter, spoken, tokens)
            speech, text = torch.cat((speech, speech, wrong_speech)), torch.cat((text, wrong_text, text))
        said = framed(tokens, self.start, self.end)
        logits = self._logits(
            adapter, spoken.features[speech], spoken.lengths[speech], said.ids[text], said.lengths[text]
        )
        labels = (torch.arange(len(speech), device=speech.device) < len(tokens)).long()
        return F.cross_entropy(logits, labels, reduction="sum")

    @torch.no_grad()
    def probabilities(self, adapter: Adapter, features: Tensor, lengths: Tensor, tokens: Tokens) -> Tensor:
        """`[B]`: how sure it is that each text belongs to the speech beside it, features `[B, T, D]` of `lengths`."""
        said = framed(tokens, self.start, self.end)
        return self._logits(adapter, features, lengths, said.ids, said.lengths).softmax(1)[:, 1]

    def _logits(self, adapter: Adapter, features: Tensor, lengths: Tensor, ids: Tensor, text_lengths: Tensor) -> Tensor:
        """No and yes, `[B, 2]` float32."""
        matched = text_adapter(adapter, self.name).match(features, lengths, ids, text_lengths)
        own = matched.mask[..., None]
        mean = matched.embeddings.masked_fill(~own, 0).sum(1) / own.sum(1)
        return self.head(mean).float()

    @torch.no_grad()
    def _negatives(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """A wrong text for each utterance and a wrong utterance for each text: places in the batch, `[B]` each."""
        keys = same_texts(tokens.ids, tokens.lengths)
        same = keys[:, None] == keys
        logits = torch.zeros(same.shape, device=same.device)
        if self.similarities is not None:
            logits = self.similarities(adapter, spoken, tokens)
        return _drawn(logits.masked_fill(same, -torch.inf)), _drawn(logits.T.masked_fill(same, -torch.inf))


def _drawn(logits: Tensor) -> Tensor:
    # NaN ends in the loss, where the training loop tells of it; multinomial would raise here.
    shares = logits.softmax(1).nan_to_num(nan=1.0)
    return shares.multinomial(1).squeeze(1)


def _texts_differ(tokens: Tokens) -> bool:
    keys = same_texts(tokens.ids, tokens.lengths)
    return bool((keys != keys[0]).any())
