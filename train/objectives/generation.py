"""STG, speech-grounded text generation: the text token by token from what the queries took from the speech."""

import torch
from encodeonce.train.adapters.base import Adapted, Adapter
from encodeonce.train.objectives.base import Objective, Spoken, Tokens
from encodeonce.train.objectives.config import GenerationConfig
from encodeonce.train.objectives.texts import begun, ended, text_adapter
from encodeonce.train.tokenizer import Tokenizer
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""A target that is none, as in `torch.nn.functional.cross_entropy`."""


class Generation(Objective):
    """The image-grounded text generation of BLIP-2 (Li et al. 2023, section 3.2) for speech.

    [DEC] text predicts text [SEP], through the adapter's own word prediction head. The text sees the keys and values that the
    query-only pass left, and what is earlier in it.
    """

    name = "stg"
    reasonable = (
        "ln(vocabulary) at the beginning: 10.3 for BERT's, 3.5 for 33 characters; "
        "it cannot fall below what label smoothing 0.1 leaves: 1.36 for BERT's vocabulary, 0.65 for 33 characters"
    )

    def __init__(self, tokenizer: Tokenizer, config: GenerationConfig) -> None:
        super().__init__()
        self.start, self.end = tokenizer.decode_start, tokenizer.end
        self.smoothing = config.label_smoothing

    def count(self, tokens: Tokens) -> int:
        """Predicted tokens: each text's and its end."""
        return int(tokens.lengths.sum()) + len(tokens)

    def forward(self, adapter: Adapter, spoken: Spoken, tokens: Tokens) -> Tensor:
        side = text_adapter(adapter, self.name)
        hidden, _ = side.write(begun(tokens, self.start).ids, spoken.adapted)
        logits = side.logits(hidden).float().flatten(0, 1)
        targets = ended(tokens, self.end, IGNORED).flatten()
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=self.smoothing)


@torch.no_grad()
def generate(adapter: Adapter, queries: Adapted, tokenizer: Tokenizer, most: int) -> list[list[int]]:
    """Greedy texts of a batch, up to `most` tokens each, without special tokens at the ends.

    A text ends at [SEP]; what is computed behind an ended one, until all have ended, is not looked at.
    """
    side = text_adapter(adapter, Generation.name)
    batch = len(queries.lengths)
    latest = queries.lengths.new_full((batch, 1), tokenizer.decode_start)
    over = torch.zeros(batch, dtype=torch.bool, device=latest.device)
    said, past = [], None
    for _ in range(most):
        hidden, past = side.write(latest, queries, past)
        latest = side.logits(hidden[:, -1:]).argmax(2)
        over = over | (latest.squeeze(1) == tokenizer.end)
        said.append(latest)
        if bool(over.all()):
            break
    return [_until(row, tokenizer.end) for row in torch.cat(said, 1).tolist()] if said else [[] for _ in range(batch)]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
