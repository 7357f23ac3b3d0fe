"""Loading a causal language model, whole, in 8 or 4 bits or from a GGUF file, and freezing it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from encodeonce.store.extras import extra
from encodeonce.train.errors import TrainingError
from encodeonce.train.llm.config import LLMConfig, LoRAConfig
from encodeonce.train.llm.fingerprint import fingerprint
from encodeonce.train.llm.frozen import FrozenLLM
from encodeonce.train.llm.prompt import build_prompt
from encodeonce.train.llm.quiet import quiet
from encodeonce.train.llm.unpacked import UnpackedCopy
from encodeonce.train.llm.words import Words
from encodeonce.train.pretrained import Pretrained, find_llm, first_line
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CAUSAL = ("CausalLM", "LMHead", "ConditionalGeneration")
"""One of these is in the name of every architecture that predicts the next token."""


def load_llm(config: LLMConfig, device: torch.device | str = "cpu") -> FrozenLLM:
    """The frozen language model of a configuration, on a device.

    Raises:
        TrainingError: it is not to be had, is no causal language model, lacks weights, does not fit the device, or cannot be asked so.
        StoreError: an optional library is missing (extras gguf, quantised, lora, train).
    """
    found = find_llm(config.model)
    copy = _unpacked_copy(found, config)
    source = found if copy is None else copy.find() or found
    tokenizer = load_tokenizer(source)
    words = Words(tokenizer, config.chat)
    prompt = build_prompt(config.prompt, words, config.chat)
    weights = load_weights(source, config, torch.device(device))
    if copy and source is found:
        copy.keep(weights, tokenizer)
    model: nn.Module = weights.requires_grad_(False)
    if config.lora is not None:
        model = add_lora(model, config.lora)
    return FrozenLLM(model, words, prompt, fingerprint(found), config.max_tokens)


def load_tokenizer(found: Pretrained) -> "PreTrainedTokenizerBase":
    """The tokenizer of a language model.

    Raises:
        TrainingError: there is none.
    """
    from transformers import AutoTokenizer

    options = _gguf(found)
    with _loading(found, "tokenizer"):
        return AutoTokenizer.from_pretrained(found.folder, local_files_only=True, **options)  # pyrefly: ignore[bad-return]


def load_weights(found: Pretrained, config: LLMConfig, device: torch.device) -> "PreTrainedModel":
    """The model, in evaluation mode, in the dtype that the configuration names.

    Raises:
        TrainingError: it is no causal language model, lacks weights, or does not fit the device.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with extra("train"):
        import accelerate  # noqa: F401
    options = {**_gguf(found), **_quantisation(found, config)}
    with _loading(found, "weights"):
        if not found.gguf:
            _check_causal(found, AutoConfig.from_pretrained(found.folder, local_files_only=True).architectures)
        model, info = AutoModelForCausalLM.from_pretrained(
            found.folder,
            dtype=getattr(torch, config.dtype),
            device_map={"": device},
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    missing = sorted(info["missing_keys"])
    if missing:
        raise TrainingError(
            f"{found.name} lacks {len(missing)} of the weights of a {type(model).__name__}, among them {missing[0]}; "
            f"give a whole checkpoint of a causal language model"
        )
    return model.eval()


def add_lora(model: nn.Module, config: LoRAConfig) -> nn.Module:
    """Put trainable low-rank updates, in float32, beside the projections whose names end in one of `targets`.

    Raises:
        TrainingError: the model has no such projections.
    """
    with extra("lora"):
        from peft import LoraConfig, get_peft_model
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, lora)  # pyrefly: ignore[bad-argument-type]
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        raise TrainingError(
            f"llm.lora.targets={','.join(config.targets)} does not fit this language model ({first_line(error)}); "
            f"its projections are {', '.join(sorted(linear))}"
        ) from error


def _unpacked_copy(found: Pretrained, config: LLMConfig) -> UnpackedCopy | None:
    """Of a GGUF file that can be loaded so, its copy in the cache."""
    if not found.gguf or config.quantise != "none":
        return None
    with _loading(found, "weights"):
        return UnpackedCopy.of(found, config.dtype)


def _gguf(found: Pretrained) -> dict[str, Any]:
    if not found.gguf:
        return {}
    with extra("gguf"):
        import gguf  # noqa: F401
    return {"gguf_file": found.gguf}


def _quantisation(found: Pretrained, config: LLMConfig) -> dict[str, Any]:
    """What `from_pretrained` is to know of it.

    Weights of a GGUF file are unpacked into `dtype`: transformers' kernels for packed ones have no way back for gradients.
    """
    import transformers

    if found.gguf:
        if config.quantise != "none":
            raise TrainingError(
                f"llm.quantise={config.quantise}: {found.name} is a GGUF file, whose weights are unpacked into llm.dtype; "
                f"give the same model in transformers' format, or take llm.quantise=none"
            )
        packed = getattr(transformers, "GgufConfig", None)  # older transformers unpack in any case
        return {"quantization_config": packed(dequantize=True)} if packed else {}
    if config.quantise == "none":
        return {}
    with extra("quantised"):
        import bitsandbytes  # noqa: F401
    # It says at every product that it casts, which is what 8 bits are.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    if config.quantise == "8bit":
        return {"quantization_config": transformers.BitsAndBytesConfig(load_in_8bit=True)}
    return {
        "quantization_config": transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, config.dtype),
        )
    }


def _check_causal(found: Pretrained, architectures: list[str] | None) -> None:
    if architectures and not any(word in name for name in architectures for word in CAUSAL):
        raise TrainingError(
            f"{found.name} is a {', '.join(architectures)}, no causal language model; give one that transformers loads as "
            f"AutoModelForCausalLM, such as smollm2-135m"
        )


@contextmanager
def _loading(found: Pretrained, what: str) -> Iterator[None]:
    """Quietly; what transformers raises is one line that names the model."""
    try:
        with quiet():
            yield
    except TrainingError:
        raise
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{found.name} does not fit the device's memory ({first_line(error)}); take llm.quantise=4bit, or a smaller model"
        ) from error
    except Exception as error:  # a damaged checkpoint shows in many kinds, safetensors' own among them
        raise TrainingError(
            f"cannot load the {what} of the language model {found.name}: {first_line(error)}"
        ) from error
