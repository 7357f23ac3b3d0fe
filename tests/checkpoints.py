"""Small random checkpoints in transformers' format, of every family of encoders, and what transformers makes of audio with them.

Weights are far from their initial values (norms, biases and running statistics too), so that padding which leaks shows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from transformers.models.moonshine.modeling_moonshine import MoonshineEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

LAYERS = 3
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 12,
}
BASE: dict[str, Any] = {**SMALL, "feat_extract_norm": "group", "do_stable_layer_norm": False}
LARGE: dict[str, Any] = {**SMALL, "feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
MOONSHINE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "encoder_num_hidden_layers": LAYERS,
    "decoder_num_hidden_layers": 1,
    "encoder_num_attention_heads": 4,
    "decoder_num_attention_heads": 4,
    "vocab_size": 16,
}
WHISPER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "vocab_size": 16,
    "pad_token_id": 0,
    "max_source_positions": 200,
}
"""Takes 4 s of audio where the published sizes take 30."""
W2V_BERT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "left_max_position_embeddings": 9,
}


@dataclass(frozen=True)
class Family:
    """One kind of checkpoint: the class that is saved, the class that is the reference, and the configuration."""

    name: str
    config: Any
    saved: Any
    options: dict[str, Any] = field(hash=False)
    encoder_of: Callable[[Any], Any] = lambda model: model
    """The part of the saved class whose `last_hidden_state` is the reference."""
    extractor: Any = None
    """The feature extractor that is saved with it, where the model takes a spectrogram."""

    def model(self, seed: int = 0, **changes: Any) -> Any:
        """A model with weights of this seed."""
        torch.manual_seed(seed)
        model = self.saved(self.config(**{**self.options, **changes}))
        shake(model, seed)
        return model.eval()


def shake(model: nn.Module, seed: int) -> None:
    """Give every parameter and running statistic a value that does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("parametrizations.weight.original0"):
                tensor.copy_(tensor * (1 + 0.3 * noise))
            elif tensor.ndim < 2:
                tensor.add_(0.3 * noise)
            else:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))


def _family(name: str, kind: str, options: dict[str, Any], **more: Any) -> Family:
    return Family(name, getattr(transformers, f"{kind}Config"), getattr(transformers, f"{kind}Model"), options | more)


def _whisper_extractor(mels: int) -> Any:
    return transformers.WhisperFeatureExtractor(feature_size=mels, chunk_length=4)


FAMILIES = {
    family.name: family
    for family in (
        _family("hubert-base", "Hubert", BASE),
        _family("hubert-large", "Hubert", LARGE),
        _family("hubert-batch-norm", "Hubert", BASE, conv_pos_batch_norm=True),
        _family("distilhubert", "Hubert", BASE, num_hidden_layers=2, feat_proj_layer_norm=False),
        _family("wav2vec2-base", "Wav2Vec2", BASE),
        _family("wav2vec2-large", "Wav2Vec2", LARGE),
        _family("wav2vec2-adapter", "Wav2Vec2", LARGE, add_adapter=True),
        _family("wavlm-base", "WavLM", BASE),
        _family("wavlm-large", "WavLM", LARGE),
        _family("data2vec-audio", "Data2VecAudio", SMALL, conv_pos_kernel_size=7, num_conv_pos_embeddings=3),
        _family("unispeech-base", "UniSpeech", BASE),
        _family("unispeech-large", "UniSpeech", LARGE),
        _family("unispeech-sat-base", "UniSpeechSat", BASE),
        _family("unispeech-sat-large", "UniSpeechSat", LARGE),
        _family("conformer-relative", "Wav2Vec2Conformer", LARGE, position_embeddings_type="relative"),
        _family("conformer-rotary", "Wav2Vec2Conformer", LARGE, position_embeddings_type="rotary"),
        _family("conformer-no-positions", "Wav2Vec2Conformer", BASE, position_embeddings_type=None),
        Family("moonshine-encoder", transformers.MoonshineConfig, MoonshineEncoder, MOONSHINE),
        Family(
            "moonshine-whole", transformers.MoonshineConfig, transformers.MoonshineModel, MOONSHINE, lambda m: m.encoder
        ),
        Family(
            "moonshine-generation",
            transformers.MoonshineConfig,
            transformers.MoonshineForConditionalGeneration,
            MOONSHINE,
            lambda m: m.model.encoder,
        ),
        *(
            Family(name, transformers.WhisperConfig, saved, WHISPER | more, encoder_of, extractor)
            for name, saved, more, encoder_of, extractor in (
                ("whisper-encoder", WhisperEncoder, {}, lambda m: m, _whisper_extractor(80)),
                ("whisper-whole", transformers.WhisperModel, {}, lambda m: m.encoder, _whisper_extractor(80)),
                (
                    "whisper-generation",
                    transformers.WhisperForConditionalGeneration,
                    {"num_mel_bins": 128},
                    lambda m: m.model.encoder,
                    _whisper_extractor(128),
                ),
            )
        ),
        *(
            Family(
                name,
                transformers.Wav2Vec2BertConfig,
                transformers.Wav2Vec2BertModel,
                W2V_BERT | more,
                extractor=transformers.SeamlessM4TFeatureExtractor(padding_value=1),
            )
            for name, more in (
                ("w2v-bert", {}),
                ("w2v-bert-relative", {"position_embeddings_type": "relative"}),
                ("w2v-bert-rotary", {"position_embeddings_type": "rotary"}),
                ("w2v-bert-adapter", {"add_adapter": True, "use_intermediate_ffn_before_adapter": True}),
            )
        ),
    )
}


@dataclass
class Checkpoints:
    """A folder of checkpoints, each saved when it is first asked for."""

    root: Path

    def folder(self, name: str) -> Path:
        """The checkpoint of a family."""
        folder = self.root / name
        if not folder.exists():
            family = FAMILIES[name]
            family.model().save_pretrained(folder)
            if family.extractor is not None:
                family.extractor.save_pretrained(folder)
        return folder

    def reference(self, name: str, audio: np.ndarray) -> list[np.ndarray]:
        """Hidden states 0 to N of one utterance by transformers alone; the last is `last_hidden_state`."""
        return reference(_loaded(name, self.folder(name)), audio, FAMILIES[name].extractor)


@cache
def _loaded(name: str, folder: Path) -> Any:
    family = FAMILIES[name]
    encoder = family.encoder_of(family.saved.from_pretrained(folder).eval())
    if getattr(encoder, "adapter", None) is not None:
        encoder.adapter = encoder.intermediate_ffn = None
    return encoder


def reference(model: Any, audio: np.ndarray, extractor: Any = None) -> list[np.ndarray]:
    """What a model of transformers makes of one utterance `[samples]`: hidden states, the last being `last_hidden_state`.

    With a feature extractor, of the spectrogram that it makes; frames of its padding alone are left out.
    """
    inputs, frames = {"input_values": torch.from_numpy(audio)[None]}, None
    if extractor is not None:
        inputs = extractor(audio, sampling_rate=16000, return_tensors="pt")
        frames = spectrogram_frames(model, audio, extractor)
    with torch.no_grad():
        result = model(**inputs, output_hidden_states=True)
    return [state[0, :frames].numpy() for state in (*result.hidden_states[:-1], result.last_hidden_state)]


def spectrogram_frames(model: Any, audio: np.ndarray, extractor: Any) -> int:
    """Frames of the audio alone: what the extractor makes of it without padding, through the model's own convolutions."""
    if isinstance(extractor, transformers.WhisperFeatureExtractor):
        mels = extractor(audio, sampling_rate=16000, padding="do_not_pad", return_tensors="pt")["input_features"]
        with torch.no_grad():
            return model.conv2(model.conv1(mels)).shape[-1]
    return int(extractor(audio, sampling_rate=16000, return_tensors="pt")["attention_mask"].sum())


def speechlike(samples: int, seed: int) -> np.ndarray:
    """`[samples]` float32: noise with an offset and a slow envelope, different in loudness from seed to seed."""
    generator = np.random.default_rng(seed)
    envelope = 0.2 + np.abs(np.sin(np.arange(samples) / 2500 + seed))
    return (generator.standard_normal(samples) * envelope * generator.uniform(0.02, 0.5) + 0.05).astype(np.float32)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
