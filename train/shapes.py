"""Sizes of pretrained models, told by their config.json alone: nothing is loaded."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from encodeonce.train.errors import TrainingError

LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
KNOWN: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": {"model_type": "llama", **LLAMA_7B, "num_hidden_layers": 32, "vocab_size": 32000},
    "meta-llama/Llama-2-7b-chat-hf": {"model_type": "llama", **LLAMA_7B, "num_hidden_layers": 32, "vocab_size": 32000},
    "lmsys/vicuna-7b-v1.5": {"model_type": "llama", **LLAMA_7B, "num_hidden_layers": 32, "vocab_size": 32000},
    "mistralai/Mixtral-8x7B-v0.1": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
        "num_local_experts": 8,
    },
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": {
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "num_hidden_layers": 22,
        "vocab_size": 32000,
    },
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "num_hidden_layers": 30,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    },
}
"""Language models of the recipes; others are asked for their config.json."""
BERTS = {
    "bert-base-uncased": (768, 12, 12, 30522),
    "bert-base-multilingual-cased": (768, 12, 12, 119547),
    "minilm-l6": (384, 6, 12, 30522),
}
"""Width, layers, heads and vocabulary."""


@dataclass(frozen=True)
class LLMShape:
    """What memory goes by in a causal language model of the LLaMA kind.

    Args:
        embeddings: parameters of the token embeddings and the head on top, which quantising leaves as they are.
        body: all others.
        hidden, feed_forward, heads, layers, vocabulary: its sizes; `feed_forward` of all experts that see a token.
    """

    embeddings: int
    body: int
    hidden: int
    feed_forward: int
    heads: int
    layers: int
    vocabulary: int

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.embeddings + self.body


def llm_shape(model: str) -> LLMShape:
    """The sizes of a language model, by its name, its folder, or its GGUF file.

    Raises:
        TrainingError: its config.json is not to be had.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        if model in KNOWN:
            values = dict(KNOWN[model])
            config = AutoConfig.for_model(values.pop("model_type"), **values)
        elif model.endswith(".gguf"):
            config = AutoConfig.from_pretrained(str(Path(model).parent), gguf_file=Path(model).name)
        else:
            config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(config)
        ends = {
            id(module.weight)
            for module in (skeleton.get_input_embeddings(), skeleton.get_output_embeddings())
            if module
        }
        sizes = {id(parameter): parameter.numel() for parameter in skeleton.parameters()}
        embeddings = sum(size for name, size in sizes.items() if name in ends)
        text = config.get_text_config()  # models that see or hear too have a configuration for each side
        experts = getattr(text, "num_experts_per_tok", 1) if getattr(text, "num_local_experts", 0) else 1
        return LLMShape(
            embeddings=embeddings,
            body=sum(sizes.values()) - embeddings,
            hidden=text.hidden_size,
            feed_forward=getattr(text, "intermediate_size", 4 * text.hidden_size) * experts,
            heads=text.num_attention_heads,
            layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise TrainingError(
            f"llm.model={model}: its config.json is not to be had, or tells no sizes: {str(error).splitlines()[0]}"
        ) from error


def bert_sizes(bert: str) -> tuple[int, int, int, int]:
    """Width, layers, heads and vocabulary of a BERT, by its name or its folder.

    Raises:
        TrainingError: its config.json is not to be had.
    """
    if (found := BERTS.get(bert.rpartition("/")[2])) is not None:
        return found
    try:
        file = Path(bert) / "config.json"
        if not file.is_file():
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(bert, "config.json"))
        read = json.loads(file.read_text(encoding="utf-8"))
        return read["hidden_size"], read["num_hidden_layers"], read["num_attention_heads"], read["vocab_size"]
    except (OSError, ValueError, KeyError) as error:
        raise TrainingError(
            f"adapter.bert={bert}: its config.json is not to be had: {str(error).splitlines()[0]}"
        ) from error
