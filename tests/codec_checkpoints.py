"""Small random codecs in transformers' format, with codebooks that much is used of, and what transformers makes of audio."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from checkpoints import BASE, LARGE, shake, speechlike

RVQ = {"codebook_size": 64, "target_bandwidths": [0.9, 1.8, 3.6]}
"""EnCodec's: at 75 frames a second of 6 bits, 2, 4 and 8 quantizers."""
ENCODEC: dict[str, Any] = {**RVQ, "num_filters": 2, "hidden_size": 16, "num_lstm_layers": 1}
DAC: dict[str, Any] = {
    "encoder_hidden_size": 4,
    "decoder_hidden_size": 32,
    "downsampling_ratios": [2, 4, 5, 8],
    "n_codebooks": 4,
    "codebook_size": 64,
    "codebook_dim": 4,
}
MIMI: dict[str, Any] = {
    "hidden_size": 32,
    "num_filters": 2,
    "upsampling_ratios": [8, 6, 5, 4],
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "sliding_window": 9,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 4,
    "upsample_groups": 32,
}
ACOUSTIC: dict[str, Any] = {
    "model_type": "dac",
    "encoder_hidden_size": 4,
    "decoder_hidden_size": 32,
    "downsampling_ratios": [8, 5, 4, 2],
    "upsampling_ratios": [8, 5, 4, 2],
    "hidden_size": 24,
}
SEMANTIC: dict[str, Any] = {"model_type": "hubert", **BASE}
XCODEC: dict[str, Any] = {
    "codebook_size": 64,
    "target_bandwidths": [0.6, 1.2],
    "acoustic_model_config": ACOUSTIC,
    "semantic_model_config": SEMANTIC,
}
XCODEC2: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "encoder_hidden_size": 2,
    "quantization_dim": 96,
    "semantic_model_config": {
        "model_type": "wav2vec2-bert",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    },
}
"""With the published levels: 65,536 codes."""
HIGGS: dict[str, Any] = {
    **XCODEC,
    "target_bandwidths": [0.3, 0.6],
    "codebook_dim": 12,
    "acoustic_model_config": {**ACOUSTIC, "downsampling_ratios": [8, 5, 4, 3, 2], "upsampling_ratios": [8, 5, 4, 3, 2]},
}


@dataclass(frozen=True)
class CodecFamily:
    """One kind of codec: its class, its configuration, its preprocessor, and how its parts are reached."""

    name: str
    kind: str
    options: dict[str, Any]
    rate: int
    hop: int
    layers: Callable[[Any], Sequence[Sequence[Any]]] | None
    """The chains of quantizers, each of which begins with the frames; None: one quantizer of finite scalars."""
    multiple: int = 0
    """What the preprocessor pads to a multiple of; 0: it pads nothing."""

    def save(self, folder: Path, seed: int = 0, **changes: Any) -> None:
        """Write a checkpoint with weights of this seed, and its preprocessor."""
        torch.manual_seed(seed)
        config = getattr(transformers, f"{self.kind}Config")(**{**self.options, **changes})
        model = getattr(transformers, f"{self.kind}Model")(config).eval()
        shake(model, seed)
        for module in model.modules():
            if isinstance(getattr(module, "alpha", None), torch.Tensor):  # Snake1d divides by it
                torch.nn.init.uniform_(module.alpha, 0.5, 1.5)
        extractor = self.extractor()
        if self.layers is None:
            fit_scalars(model, extractor, seed)
        else:
            fit(model, self.layers(model), seed)
        model.save_pretrained(folder)
        extractor.save_pretrained(folder)

    def extractor(self) -> Any:
        """transformers' preprocessor of this family."""
        if self.layers is None:
            return getattr(transformers, f"{self.kind}FeatureExtractor")(sampling_rate=self.rate)
        if self.multiple:
            return transformers.DacFeatureExtractor(sampling_rate=self.rate, hop_length=self.multiple)
        return transformers.EncodecFeatureExtractor(sampling_rate=self.rate)


def fit(model: Any, chains: Sequence[Sequence[Any]], seed: int) -> None:
    """Make each codebook of residuals that it would meet, so that many of its entries are used."""
    frames = _frames(model, seed)
    generator = torch.Generator().manual_seed(seed)
    for chain in chains:
        project = getattr(_owner(model, chain), "input_proj", None)
        with torch.no_grad():
            residual = frames if project is None else project(frames)
            for layer in chain:
                rows = residual.transpose(1, 2)[0]
                rows = layer.project_in(rows) if hasattr(layer, "project_in") else rows
                _set_codebook(layer, rows, generator)
                if hasattr(layer, "encode"):
                    residual = residual - layer.decode(layer.encode(residual))
                else:
                    residual = residual - layer(residual)[0]


def fit_scalars(model: Any, extractor: Any, seed: int) -> None:
    """Let the projection into finite scalars spread what it would meet over their levels."""
    caught, project = [], model.quantizer.project_in
    hook = project.register_forward_pre_hook(lambda module, given: caught.append(given[0][0]))
    audio = speechlike(192_000, seed)
    with torch.no_grad():
        model.encode(**extractor(audio, sampling_rate=extractor.sampling_rate, return_tensors="pt"))
        hook.remove()
        std, mean = torch.std_mean(caught[0] @ project.weight.T, 0)
        project.weight /= std[:, None]
        project.bias.copy_(-mean / std)


def _frames(model: Any, seed: int) -> torch.Tensor:
    """What the quantizers are given for some audio, `[1, D, T]`."""
    caught = []
    name = "forward" if isinstance(model, transformers.DacModel) else "encode"
    original = getattr(model.quantizer, name)

    def catch(states: torch.Tensor, *arguments: Any) -> Any:
        caught.append(states)
        return original(states, *arguments)

    setattr(model.quantizer, name, catch)
    with torch.no_grad():
        model.encode(torch.from_numpy(speechlike(192_000, seed))[None, None])
    delattr(model.quantizer, name)
    return caught[0]


def _owner(model: Any, chain: Sequence[Any]) -> Any:
    return next(module for module in model.modules() if any(child is chain for child in module.children()))


def _set_codebook(layer: Any, rows: torch.Tensor, generator: torch.Generator) -> None:
    if isinstance(layer.codebook, torch.nn.Embedding):
        rows, size = layer.in_proj(rows.T[None])[0].T, len(layer.codebook.weight)
    else:
        size = layer.codebook.codebook_size
    drawn = rows[torch.randint(len(rows), (size,), generator=generator)]
    drawn = drawn + 0.1 * rows.std(0) * torch.randn(drawn.shape, generator=generator)
    if isinstance(layer.codebook, torch.nn.Embedding):
        layer.codebook.weight.copy_(drawn)
    elif hasattr(layer.codebook, "embed_sum"):
        layer.codebook.cluster_usage.copy_(0.5 + 2 * torch.rand(size, generator=generator))
        layer.codebook.embed_sum.copy_(drawn * layer.codebook.cluster_usage[:, None])
        layer.codebook._embed = None
    else:
        layer.codebook.embed.copy_(drawn)


def _encodec(model: Any) -> Sequence[Sequence[Any]]:
    return [model.quantizer.layers]


def _quantizers(model: Any) -> Sequence[Sequence[Any]]:
    return [model.quantizer.quantizers]


def _mimi(model: Any) -> Sequence[Sequence[Any]]:
    both = model.quantizer
    return [both.semantic_residual_vector_quantizer.layers, both.acoustic_residual_vector_quantizer.layers]


OTHER_ENCODEC = {**ENCODEC, "use_causal_conv": False, "norm_type": "time_group_norm", "pad_mode": "constant"}
ODD_DAC = {**DAC, "downsampling_ratios": [3, 4, 1]}
WAVLM = {**XCODEC, "semantic_model_config": {"model_type": "wavlm", **LARGE}}

CODECS = {
    family.name: family
    for family in (
        CodecFamily("encodec", "Encodec", ENCODEC, 24000, 320, _encodec),
        CodecFamily("encodec-not-causal", "Encodec", OTHER_ENCODEC, 24000, 320, _encodec),
        CodecFamily("dac", "Dac", DAC, 16000, 320, _quantizers, 320),
        CodecFamily("dac-odd-strides", "Dac", ODD_DAC, 44100, 12, _quantizers, 20),
        CodecFamily("mimi", "Mimi", MIMI, 24000, 1920, _mimi),
        CodecFamily("xcodec", "Xcodec", XCODEC, 16000, 320, _quantizers, 320),
        CodecFamily("xcodec-wavlm", "Xcodec", WAVLM, 16000, 320, _quantizers, 320),
        CodecFamily("higgs", "HiggsAudioV2Tokenizer", HIGGS, 24000, 960, _quantizers, 960),
        CodecFamily("xcodec2", "Xcodec2", XCODEC2, 16000, 320, None),
        CodecFamily("neucodec", "NeuCodec", XCODEC2, 16000, 320, None),
    )
}


@dataclass
class Codecs:
    """A folder of codecs, each saved when it is first asked for, and transformers as the reference."""

    root: Path

    def folder(self, name: str) -> Path:
        """The checkpoint of a family."""
        folder = self.root / name
        if not folder.exists():
            CODECS[name].save(folder)
        return folder

    def reference(self, name: str) -> "Reference":
        """The codec as transformers runs it."""
        return _reference(self.folder(name), CODECS[name].kind)


@cache
def _reference(folder: Path, kind: str) -> "Reference":
    return Reference(folder, kind)


class Reference:
    """transformers' feature extractor and model, one utterance at a time."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        self.kind = kind
        self.model: Any = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()

    def codes(self, audio: np.ndarray, **options: Any) -> np.ndarray:
        """Codes `[T, Q]` of one utterance `[samples]`, all quantizers."""
        inputs = self.extractor(audio, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        if self.kind not in ("Encodec", "Mimi", "Xcodec2", "NeuCodec"):
            inputs = {"input_values": inputs["input_values"]}
        if self.kind == "Encodec":
            options = {"bandwidth": self.model.config.target_bandwidths[-1], **options}
        with torch.no_grad():
            codes = self.model.encode(**inputs, **options).audio_codes
        return (codes[0, 0] if self.kind == "Encodec" else codes[0]).T.numpy()

    def latents(self, codes: np.ndarray) -> np.ndarray:
        """What the decoder takes, `[T, D]`, of codes `[T, Q]` of the first Q quantizers."""
        given = torch.from_numpy(codes.T.astype(np.int64).copy())
        with torch.no_grad():
            if self.kind == "Dac":
                return self.model.quantizer.from_codes(given[None])[0][0].T.numpy()
            if self.kind in ("Xcodec2", "NeuCodec"):
                return self.model.quantizer.from_codes(given[None].transpose(1, 2))[0].numpy()
            by_quantizer = given[None] if self.kind == "Mimi" else given[:, None]
            return self.model.quantizer.decode(by_quantizer)[0].T.numpy()

    def audio(self, codes: np.ndarray) -> np.ndarray:
        """Audio `[samples]` of codes `[T, Q]`."""
        given = torch.from_numpy(codes.T.astype(np.int64).copy())[None]
        with torch.no_grad():
            if self.kind == "Encodec":
                return self.model.decode(given[None], [None]).audio_values[0, 0].numpy()
            if self.kind == "Dac":
                return self.model.decode(audio_codes=given).audio_values[0].numpy()
            return self.model.decode(given).audio_values[0, 0].numpy()
