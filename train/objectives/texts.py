"""What the objectives ask of an adapter that reads and writes text, and texts with the special tokens around them."""

from typing import Any, Protocol, cast

import torch
from encodeonce.train.adapters.base import Adapted, Adapter
from encodeonce.train.errors import TrainingError
from encodeonce.train.objectives.base import Tokens
from torch import Tensor


class TextAdapter(Protocol):
    """A Q-Former as the objectives see it; `encodeonce.train.qformer.QFormer` is one."""

    def read(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The text alone, ids `[B, L]`: hidden states `[B, L, H]`."""
        ...

    def match(self, features: Tensor, lengths: Tensor, ids: Tensor, text_lengths: Tensor) -> Adapted:
        """Queries that see the features and the text, and are seen by it: embeddings `[B, N, H]` of the queries."""
        ...

    def write(self, ids: Tensor, queries: Any, past: Any = None) -> tuple[Tensor, Any]:
        """Hidden states `[B, L, H]` of text that follows `past` and sees the queries and what is earlier, and the past to go on from."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """`[B, L, V]`: what token comes next."""
        ...


def text_adapter(adapter: Adapter, objective: str) -> TextAdapter:
    """The adapter as one that knows text.

    Raises:
        TrainingError: it knows none.
    """
    if not all(callable(getattr(adapter, method, None)) for method in ("read", "match", "write", "logits")):
        kind = type(adapter).__name__
        raise TrainingError(
            f"{objective} needs an adapter that reads text, a Q-Former; {kind} does not: use ctc or llm"
        )
    return cast(TextAdapter, adapter)


def framed(tokens: Tokens, start: int, end: int) -> Tokens:
    """Texts with a token before and one after each: ids `[B, L + 2]`."""
    batch, _ = tokens.ids.shape
    ids = torch.cat((tokens.ids.new_full((batch, 1), start), ended(tokens, end, 0)), 1)
    return Tokens(ids, tokens.lengths + 2)


def begun(tokens: Tokens, start: int) -> Tokens:
    """Texts with a token before each: ids `[B, L + 1]`."""
    first = tokens.ids.new_full((len(tokens), 1), start)
    return Tokens(torch.cat((first, tokens.ids), 1), tokens.lengths + 1)


def ended(tokens: Tokens, end: int, padding: int) -> Tensor:
    """Ids `[B, L + 1]`: each text with `end` right after it, and `padding` after that."""
    place = torch.arange(tokens.ids.shape[1] + 1, device=tokens.ids.device)
    longer = torch.nn.functional.pad(tokens.ids, (0, 1)).masked_fill(place > tokens.lengths[:, None], padding)
    return longer.masked_fill(place == tokens.lengths[:, None], end)


def same_texts(ids: Tensor, lengths: Tensor) -> Tensor:
    """`[B]` int64: a number for each text, equal for equal texts and for others but once in about 2^60 pairs.

    It does not depend on padding, nor on the machine: texts of other batches and ranks can be compared.
    """
    place = torch.arange(1, ids.shape[1] + 1, device=ids.device)
    mixed = _mix(_mix(ids + 1) + place * _GOLDEN)
    return _mix(mixed.masked_fill(place > lengths[:, None], 0).sum(1) + lengths)


_GOLDEN = -7046029254386353131  # 2^64 over the golden ratio, as int64


def _mix(x: Tensor) -> Tensor:
    """Bits of int64 well stirred (the finaliser of splitmix64, Steele et al. 2014; shifts keep the sign here, which does no harm)."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ (x >> shift)) * factor
    return x ^ (x >> 31)
