"""HuBERT, wav2vec 2.0, WavLM, data2vec, UniSpeech and their kin: convolutions over the raw waveform, then a transformer."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from encodeonce.extract.encoders.base import EncoderError, LoadedEncoder
from encodeonce.extract.encoders.checkpoint import CheckpointEncoder, LoadedCheckpoint, load_pretrained
from encodeonce.store.layout import Output

COMMON: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "conv_dim": [512, 512, 512, 512, 512, 512, 512],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "do_stable_layer_norm": False,
}


class SelfSupervised(CheckpointEncoder):
    """The common shape of the raw-waveform encoders."""

    layer_field = "num_hidden_layers"
    fields: Mapping[str, Any] = COMMON
    final_norm_always: ClassVar[bool] = False

    def convolutions(self) -> list[tuple[int, int]]:
        kernels, strides = self.config["conv_kernel"], self.config["conv_stride"]
        if len(kernels) != len(strides):
            raise EncoderError(
                f"{self.folder / 'config.json'}: conv_kernel has {len(kernels)} entries, conv_stride {len(strides)}"
            )
        return list(zip(kernels, strides, strict=True))

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> LoadedEncoder:
        import transformers
        from encodeonce.extract.encoders.packed import LoadedPacked, can_pack
        from encodeonce.extract.encoders.packed_layers import Computing

        model: Any = load_pretrained(getattr(transformers, self.model_class), self.folder)
        if can_pack(model):
            return LoadedPacked(self, model, Computing.best(device, precision), outputs)
        model.adapter = None  # it would shorten the frames after the last layer
        # With "stable" layer norm the encoder's norm follows the last layer; else it comes before the first.
        norm = "layer_norm" if self.config.get("do_stable_layer_norm") or self.final_norm_always else None
        return LoadedCheckpoint(self, model, model.encoder, norm, device, precision, outputs)


class Hubert(SelfSupervised):
    """HuBERT of every size, distilHuBERT and mHuBERT."""

    model_class = "HubertModel"
    fields: Mapping[str, Any] = {
        **COMMON,
        "feat_proj_layer_norm": True,
        "conv_pos_batch_norm": False,
        "adapter_attn_dim": None,
    }


class Wav2Vec2(SelfSupervised):
    """wav2vec 2.0, XLS-R, MMS."""

    model_class = "Wav2Vec2Model"
    fields: Mapping[str, Any] = {**COMMON, "adapter_attn_dim": None}


class Wav2Vec2Conformer(SelfSupervised):
    """wav2vec 2.0 with conformer layers."""

    model_class = "Wav2Vec2ConformerModel"
    final_norm_always = True
    parallel = False  # transformers keeps its table of rotary positions on the module, of the last length it met
    fields: Mapping[str, Any] = {
        **{k: v for k, v in COMMON.items() if k != "do_stable_layer_norm"},
        "conv_depthwise_kernel_size": 31,
        "position_embeddings_type": "relative",
        "rotary_embedding_base": 10000,
        "max_source_positions": 5000,
    }


class WavLM(SelfSupervised):
    """WavLM of every size."""

    model_class = "WavLMModel"
    fields: Mapping[str, Any] = {**COMMON, "num_buckets": 320, "max_bucket_distance": 800}

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> LoadedEncoder:
        # transformers' own call; it means the same, and the user can do nothing about it.
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask and attn_mask", UserWarning)
        return super().load(device, precision, outputs)


class Data2VecAudio(SelfSupervised):
    """data2vec for audio."""

    model_class = "Data2VecAudioModel"
    fields: Mapping[str, Any] = {
        **{k: v for k, v in COMMON.items() if k not in ("feat_extract_norm", "do_stable_layer_norm")},
        "conv_pos_kernel_size": 19,
        "num_conv_pos_embeddings": 5,
    }


class UniSpeech(SelfSupervised):
    """UniSpeech."""

    model_class = "UniSpeechModel"


class UniSpeechSat(SelfSupervised):
    """UniSpeech-SAT."""

    model_class = "UniSpeechSatModel"
