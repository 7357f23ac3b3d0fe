"""Mimi, Kyutai's codec, through transformers: convolutions, a transformer, a semantic quantizer and residual ones."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.checkpoint_codec import CheckpointCodec, count_in_integers, quantizer
from encodeonce.extract.encoders.codec import LoadedCodec
from encodeonce.store.codebooks import Codebooks
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch


class Mimi(CheckpointCodec):
    """Kyutai's codec: the first quantizer is semantic, the others start again from the frames."""

    model_class = "MimiModel"
    fields: Mapping[str, Any] = {
        "sampling_rate": 24000,
        "frame_rate": None,
        "hidden_size": 512,
        "num_filters": 64,
        "num_residual_layers": 1,
        "upsampling_ratios": [8, 6, 5, 4],
        "kernel_size": 7,
        "last_kernel_size": 3,
        "residual_kernel_size": 3,
        "dilation_growth_rate": 2,
        "use_causal_conv": True,
        "pad_mode": "constant",
        "compress": 2,
        "codebook_size": 2048,
        "codebook_dim": 256,
        "num_quantizers": 32,
        "num_semantic_quantizers": 1,
        "use_conv_shortcut": False,
        "vector_quantization_hidden_dimension": 256,
        "num_hidden_layers": 8,
        "intermediate_size": 2048,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": None,
        "hidden_act": "gelu",
        "norm_eps": 1e-5,
        "rope_parameters": None,
        "sliding_window": 250,
        "attention_bias": False,
    }

    def computed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        channels = config.get("audio_channels", 1)
        if channels != 1:
            raise EncoderError(f"{self.name} is a Mimi with {channels} channels; use a mono one (kyutai/mimi)")
        fields = super().computed(config)
        # transformers writes the rate that a configuration was given with an underscore.
        given = fields["frame_rate"] or config.get("_frame_rate")
        fields["frame_rate"] = float(given or fields["sampling_rate"] / (2 * math.prod(fields["upsampling_ratios"])))
        fields["codebook_dim"] = fields["codebook_dim"] or fields["hidden_size"]
        fields["head_dim"] = fields["head_dim"] or fields["hidden_size"] // fields["num_attention_heads"]
        rope = {"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))}
        fields["rope_parameters"] = rope | (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
        return fields

    def hop(self) -> int:
        # MimiConfig.latent_stride, of the convolution that follows the transformer
        encoder = math.prod(self.config["upsampling_ratios"])
        stride = int(math.ceil(self.config["sampling_rate"] / encoder) / self.config["frame_rate"])
        if stride < 2:
            raise EncoderError(
                f"{self.name} is a Mimi without the step down to its frame rate, which transformers cannot run"
            )
        return encoder * stride

    def quantizers(self) -> int:
        return int(self.config["num_quantizers"])

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedMimi":
        return LoadedMimi(self, device, outputs)


class LoadedMimi(LoadedCodec):
    """Mimi on a whole utterance at once, also where its configuration asks for streaming."""

    def __init__(self, codec: Mimi, device: str, outputs: Sequence[Output]) -> None:
        self.model = codec.model(device)
        count_in_integers(self.model)
        both = self.model.quantizer
        halves = (both.semantic_residual_vector_quantizer, both.acoustic_residual_vector_quantizer)
        quantizers = [
            quantizer(layer.codebook.embed, half.output_proj and half.output_proj.weight, None)
            for half in halves
            for layer in half.layers
        ]
        super().__init__(codec, Codebooks(tuple(quantizers)), device, outputs)

    def encode_one(self, audio: "torch.Tensor") -> "torch.Tensor":
        return self.model.encode(audio[None, None], use_streaming=False).audio_codes[0]

    def audio_of_codes(self, codes: "torch.Tensor") -> "torch.Tensor":
        return self.model.decode(codes[None]).audio_values[0, 0]

    def audio_of_latents(self, latents: "torch.Tensor") -> "torch.Tensor":
        return self.model.decoder(latents[None]).audio_values[0, 0]
