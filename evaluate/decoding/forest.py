"""Many token paths behind one prompt, scored by a frozen language model; no token of a path is computed twice."""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from encodeonce.train.errors import TrainingError
from encodeonce.train.llm.frozen import FrozenLLM

ROOT = 0
"""The node where the prompt ends."""


class Forest:
    """Paths that share their beginnings: a node is a token after its parent's path, the root the end of the prompt.

    Nodes are evaluated many at a time, in one row: each has the position of its depth, and a mask through which it sees the
    prompt and its ancestors alone, as speculative decoding does with trees of tokens (SpecInfer: Miao et al. 2023). The keys and
    values of the prompt and of all nodes so far stay in one cache, so that memory grows with the nodes: `clear` it now and then.

    Args:
        prompt: token ids, at least one.
        at_once: nodes of one call at most.
        dtype: in which log-probabilities are kept, of the whole vocabulary for each node.

    Raises:
        TrainingError: this language model cannot be asked so.
    """

    def __init__(
        self, llm: FrozenLLM, prompt: Sequence[int], at_once: int = 128, dtype: torch.dtype = torch.float16
    ) -> None:
        _check(llm)
        self._llm, self._at_once, self._length, self._limit = llm, at_once, len(prompt), _limit(llm)
        self._device, self._computes, self._kept = llm.weight.device, _dtype(llm), dtype
        if self._length >= self._limit:
            raise TrainingError(
                f"the prompt has {self._length} tokens, and the language model sees {self._limit}: give it fewer lines"
            )
        self._cache, self._root = self._read(prompt)
        self.clear()

    def __len__(self) -> int:
        """Nodes, evaluated or not."""
        return len(self._tokens)

    def clear(self) -> None:
        """Forget all nodes but the root."""
        if beyond := self._cache.get_seq_length() - self._length:
            self._cache.crop(-beyond)
        self._children: dict[tuple[int, int], int] = {}
        self._tokens, self._parents = [-1], [-1]
        self._places: list[tuple[int, ...] | None] = [()]  # in the cache, of a node and its ancestors, once evaluated
        self._log_probs: list[np.ndarray | None] = [self._root]

    def child(self, node: int, token: int) -> int:
        """The node of a token after a node; it need not be evaluated."""
        found = self._children.get((node, token))
        if found is None:
            found = self._children[node, token] = len(self._tokens)
            self._tokens.append(token)
            self._parents.append(node)
            self._places.append(None)
            self._log_probs.append(None)
        return found

    def is_evaluated(self, node: int) -> bool:
        """Whether its log-probabilities are there."""
        return self._log_probs[node] is not None

    def log_probs(self, node: int) -> np.ndarray:
        """Of each next token, `[V]`, in nats; the node has been evaluated."""
        found = self._log_probs[node]
        assert found is not None, f"node {node} has not been evaluated"
        return found

    def evaluate(self, nodes: Iterable[int]) -> None:
        """Compute what follows nodes, and their ancestors, which come first: a parent's number is below its children's."""
        wanted = sorted(self._missing(nodes))
        for begin in range(0, len(wanted), self._at_once):
            self._evaluate(wanted[begin : begin + self._at_once])

    def _missing(self, nodes: Iterable[int]) -> set[int]:
        missing: set[int] = set()
        for node in nodes:
            while not self.is_evaluated(node) and node not in missing:
                missing.add(node)
                node = self._parents[node]
        return missing

    @torch.inference_mode()
    def _evaluate(self, nodes: Sequence[int]) -> None:
        past = self._cache.get_seq_length()
        for place, node in enumerate(nodes, past):
            self._places[node] = (*self._path(self._parents[node]), place)
        paths = [self._path(node) for node in nodes]
        positions = torch.tensor([[self._length + len(path) - 1 for path in paths]])
        if (deepest := int(positions.max())) >= self._limit:
            raise TrainingError(
                f"prompt and text have {deepest + 1} tokens, and the language model sees {self._limit}: give the prompt fewer lines"
            )
        logits = self._llm.model(
            input_ids=torch.tensor([[self._tokens[node] for node in nodes]], device=self._device),
            position_ids=positions.to(self._device),
            attention_mask=self._mask(paths, past).to(self._device),
            past_key_values=self._cache,
            use_cache=True,
        ).logits[0]  # [N, V]
        for node, row in zip(nodes, self._normalised(logits), strict=True):
            self._log_probs[node] = row

    def _mask(self, paths: Sequence[tuple[int, ...]], past: int) -> torch.Tensor:
        """What each node sees of the cache and of those beside it, added to attention's scores: `[1, 1, N, past + N]`."""
        mask = torch.full((len(paths), past + len(paths)), torch.finfo(self._computes).min, dtype=self._computes)
        mask[:, : self._length] = 0
        rows = np.repeat(np.arange(len(paths)), [len(path) for path in paths])
        mask[torch.from_numpy(rows), torch.tensor([place for path in paths for place in path])] = 0
        return mask[None, None]

    def _path(self, node: int) -> tuple[int, ...]:
        found = self._places[node]
        assert found is not None, "ancestors are evaluated first"
        return found

    @torch.inference_mode()
    def _read(self, prompt: Sequence[int]) -> tuple[Any, np.ndarray]:
        """The cache of the prompt, and what follows it."""
        from transformers import DynamicCache

        cache = DynamicCache()
        ids = torch.tensor([list(prompt)], device=self._device)
        found = self._llm.model(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache, self._normalised(found.logits[0, -1:])[0]

    def _normalised(self, logits: torch.Tensor) -> np.ndarray:
        return logits.float().log_softmax(-1).to(self._kept).cpu().numpy()


def _dtype(llm: FrozenLLM) -> torch.dtype:
    """What the model computes in."""
    return llm.weight.dtype if llm.weight.is_floating_point() else torch.float32


def _limit(llm: FrozenLLM) -> int:
    """Tokens that every one of its layers sees at once."""
    config = llm.model.config.get_text_config()
    windows = [llm.limit, getattr(config, "sliding_window", None) if _slides(config) else None]
    return min((limit for limit in windows if limit is not None), default=2**31)


def _slides(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds else bool(getattr(config, "use_sliding_window", True))


def _check(llm: FrozenLLM) -> None:
    """Refuse models whose layers do not go by positions and a mask that are given."""
    config = llm.model.config.get_text_config()
    base = llm.model.get_base_model() if hasattr(llm.model, "get_base_model") else llm.model
    kinds = set(getattr(config, "layer_types", None) or ())
    if (
        "position_ids" not in inspect.signature(base.forward).parameters
        or getattr(config, "alibi", False)
        or kinds - {"full_attention", "sliding_attention"}
        or getattr(config, "_attn_implementation", "eager") not in ("eager", "sdpa")
    ):
        raise TrainingError(
            f"a {type(base).__name__} cannot score many paths at once, for its layers take neither positions nor a mask for each token; "
            f"take a model with rotary or learned positions and attention in every layer, such as smollm2-135m"
        )
