"""What comes next, as the frozen language model says after its soft prompt, and as a Q-Former says after its queries.

Keys and values of all that stands before are kept, so that only new tokens are computed. Shapes: R rows, S places, V tokens.
"""

import inspect
from dataclasses import replace
from typing import Any

import torch
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.train.adapters.base import Adapted, Adapter
from encodeonce.train.llm.frozen import FrozenLLM
from encodeonce.train.objectives.generation import Generation
from encodeonce.train.objectives.texts import text_adapter
from encodeonce.train.qformer import KeyValue, Queries
from encodeonce.train.tokenizer import Tokenizer
from torch import Tensor


class LLMTokens:
    """The language model's next tokens; see `token_search.NextTokens`.

    Args:
        soft: embeddings `[B, N, W]` in the model's width.
    """

    def __init__(self, llm: FrozenLLM, soft: Adapted) -> None:
        self.end = llm.words.end
        self._model = llm.model
        base = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
        self._known = frozenset(inspect.signature(base.forward).parameters)
        if "past_key_values" not in self._known:
            raise EvaluationError(
                f"a {type(base).__name__} keeps no keys and values, which texts are written from here; "
                f"take a language model with attention, such as smollm2-135m"
            )
        self._prompt, self._mask = llm.ask(soft)
        self._past: Any = None

    def begin(self) -> Tensor:
        """What comes first, `[B, V]`."""
        return self._ask(inputs_embeds=self._prompt)

    def go_on(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """What comes after tokens that go on from rows, `[R, V]`."""
        if not _all(rows, len(self._mask)):
            self._past.reorder_cache(rows)
        self._mask = torch.cat((self._mask[rows], self._mask.new_ones(len(rows), 1)), 1)
        return self._ask(input_ids=tokens[:, None])

    def _ask(self, **given: Tensor) -> Tensor:
        (new,) = given.values()
        options = {
            "position_ids": (self._mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :],
            "logits_to_keep": 1,
            "past_key_values": self._past,
            "use_cache": True,
        }
        known = {name: value for name, value in options.items() if name in self._known}
        found = self._model(**given, attention_mask=self._mask.long(), **known)
        self._past = found.past_key_values
        return found.logits[:, -1]


class QFormerTokens:
    """A Q-Former's next tokens, by its prediction head; see `token_search.NextTokens`."""

    def __init__(self, adapter: Adapter, queries: Queries, tokenizer: Tokenizer) -> None:
        self.end = tokenizer.end
        self._side = text_adapter(adapter, Generation.name)
        self._queries, self._start = queries, tokenizer.decode_start
        self._past: tuple[KeyValue, ...] = queries.keys

    def begin(self) -> Tensor:
        """What comes first, `[B, V]`."""
        return self._ask(self._queries.lengths.new_full((len(self._queries.lengths),), self._start))

    def go_on(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """What comes after tokens that go on from rows, `[R, V]`."""
        if not _all(rows, len(self._queries.lengths)):
            queries = self._queries
            self._queries = replace(queries, embeddings=queries.embeddings[rows], lengths=queries.lengths[rows])
            self._past = tuple((key[rows], value[rows]) for key, value in self._past)
        return self._ask(tokens)

    def _ask(self, tokens: Tensor) -> Tensor:
        hidden, self._past = self._side.write(tokens[:, None], self._queries, self._past)
        return self._side.logits(hidden[:, -1:])[:, 0]


def _all(rows: Tensor, count: int) -> bool:
    """Whether rows are all of so many, in their order."""
    return len(rows) == count and bool((rows == torch.arange(count, device=rows.device)).all())
