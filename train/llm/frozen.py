"""The frozen language model behind a soft prompt: its loss on a target, and the text that it writes.

Shapes: B utterances, N embeddings of the adapter, P places of the prompt, L target tokens, W the model's width, V its vocabulary.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from encodeonce.train.adapters.base import Adapted, valid
from encodeonce.train.llm.prompt import Prompt
from encodeonce.train.llm.words import Words
from encodeonce.train.objectives.base import Tokens
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORED = -100
ROWS_AT_ONCE = 4096
"""Embeddings in float32 of so many tokens, tens of MB, instead of gigabytes for them all."""


class FrozenLLM(nn.Module):
    """A causal language model of transformers that is asked by embeddings, in evaluation mode always.

    Only the weights of a LoRA are trained, and only its dropout follows `train()`.

    Attributes:
        width: of its embeddings.
        limit: places that it has positions for; None: it knows no limit.
        words: its tokenizer.
        fingerprint: of its files.
        max_tokens: tokens that it writes at most.
    """

    def __init__(self, model: Any, words: Words, prompt: Prompt, fingerprint: str, max_tokens: int = 256) -> None:
        super().__init__()
        self.model: Any = model
        self.words, self.prompt, self.fingerprint, self.max_tokens = words, prompt, fingerprint, max_tokens
        self.width = self.weight.shape[1]
        self.limit: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.register_buffer("before", torch.tensor(prompt.before, dtype=torch.int64), persistent=False)
        self.register_buffer("after", torch.tensor(prompt.after, dtype=torch.int64), persistent=False)
        self.model.generation_config = self._greedy()
        self._known = frozenset(inspect.signature(_inner(self.model).forward).parameters)
        self._recomputes = False
        self.to(self.weight.device)
        self.train()

    def train(self, mode: bool = True) -> "FrozenLLM":
        """Evaluation mode for everything but a LoRA's dropout."""
        super().train(False)
        self.training = mode
        for name, part in self.named_modules():
            if "lora_dropout" in name:
                part.training = mode
            elif type(part).__name__ == "Linear4bit":
                # bitsandbytes, in evaluation mode on a CPU with AVX-512 BF16, packs weights at the first product without
                # gradients into a form whose product has no way back: from then on gradients are lost without a word.
                part.training = True
        return self

    @property
    def embedding(self) -> nn.Module:
        """The model's own embedding of token ids."""
        return self.model.get_input_embeddings()

    @property
    def weight(self) -> Tensor:
        """The embedding rows `[V, W]`."""
        return self.embedding.weight  # pyrefly: ignore[bad-return]

    @property
    def checkpointing(self) -> bool:
        """Compute layers again on the way back instead of keeping what they made (gradient checkpointing)."""
        return self._recomputes

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        # transformers' own switch works in training mode alone, which would bring dropout with it.
        from transformers.modeling_layers import GradientCheckpointingLayer

        for layer in self.model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.__dict__.pop("forward", None)
                if on:
                    layer.forward = partial(_recomputed, layer.forward)
        self._recomputes = on

    def embed(self, ids: Tensor) -> Tensor:
        """What the model reads `[..., W]` of token ids `[...]`: their embedding rows, in Gemma times the root of W."""
        return self.embedding(ids)

    @torch.no_grad()
    def embedding_rms(self) -> float:
        """The root mean square of the values that `embed` gives, over all token ids."""
        ids = torch.arange(len(self.weight), device=self.weight.device)
        squares = [self.embed(some).float().square().mean(1) for some in ids.split(ROWS_AT_ONCE)]
        return float(torch.cat(squares).mean().sqrt())

    def room(self, embeddings: int, tokens: int) -> bool:
        """Whether the prompt with so many embeddings, so many target tokens and the end token are within the model's positions."""
        return self.limit is None or len(self.prompt) + embeddings + tokens + 1 <= self.limit

    def loss(self, adapted: Adapted, tokens: Tokens) -> Tensor:
        """The sum of -log p, in nats, of each target's tokens and of the end token after them: `sum(lengths) + B` terms.

        Args:
            adapted: embeddings `[B, N, W]`.
        """
        prompt, mask = self.ask(adapted)
        most = tokens.ids.shape[1]
        place = torch.arange(most + 1, device=tokens.ids.device)
        ends = torch.where(place == tokens.lengths[:, None], self.words.end, IGNORED)
        labels = torch.where(valid(tokens.lengths, most + 1), F.pad(tokens.ids, (0, 1)), ends)  # [B, L + 1]
        inputs = torch.cat([prompt, self.embed(tokens.ids)], 1)  # [B, P + L, W]
        mask = torch.cat([mask, valid(tokens.lengths, most)], 1)
        logits = self._last_logits(inputs, mask, most + 1)  # [B, L + 1, V]
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")

    @torch.no_grad()
    def generate(self, adapted: Adapted, most: int | None = None, beams: int = 1) -> list[str]:
        """What the model writes after the soft prompts `[B, N, W]`: greedily, or the best of a beam search.

        Args:
            most: tokens at most; None: `max_tokens`.
        """
        prompt, mask = self.ask(adapted)
        most = self.max_tokens if most is None else most
        if self.limit is not None:
            most = max(1, min(most, self.limit - prompt.shape[1]))
        ids = self.model.generate(
            inputs_embeds=prompt, attention_mask=mask.long(), max_new_tokens=most, num_beams=beams
        )
        return [self.words.decode(row) for row in ids.tolist()]

    def ask(self, adapted: Adapted) -> tuple[Tensor, Tensor]:
        """The soft prompts `[B, P, W]` in the model's dtype and their mask `[B, P]`, padded before their beginning.

        So all answers begin at the same place, and only that place and those after it go through the output matrix.
        """
        speech = adapted.embeddings.to(self.weight.dtype)
        count, most, width = speech.shape
        before, after = (self.embed(ids).to(speech.dtype).expand(count, -1, -1) for ids in (self.before, self.after))
        whole = torch.cat([before, speech, after], 1)  # [B, P, W], the padding between speech and after
        place = torch.arange(whole.shape[1], device=whole.device)
        padding = (most - adapted.lengths)[:, None]
        mask = place >= padding
        source = torch.where(place < before.shape[1] + most, (place - padding).clamp(min=0), place)
        moved = whole.gather(1, source[..., None].expand(-1, -1, width))
        return moved.masked_fill(~mask[..., None], 0), mask

    def _last_logits(self, inputs: Tensor, mask: Tensor, count: int) -> Tensor:
        """The logits `[B, count, V]` of the last places of inputs `[B, S, W]`."""
        options = {
            "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
            "logits_to_keep": count,
            "use_cache": False,
        }
        known = {name: value for name, value in options.items() if name in self._known}
        return self.model(inputs_embeds=inputs, attention_mask=mask.long(), **known).logits[:, -count:]

    def _greedy(self) -> Any:
        """Generation without what a checkpoint's own defaults bring (sampling, penalties on repetition)."""
        from transformers import GenerationConfig

        return GenerationConfig(do_sample=False, eos_token_id=self.words.end, pad_token_id=self.words.end)


def _recomputed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)


def _inner(model: Any) -> Any:
    """The model under peft's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
