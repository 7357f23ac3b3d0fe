"""EnCodec through transformers: convolutions and an LSTM, residual quantizers."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.checkpoint_codec import (
    CheckpointCodec,
    count_in_integers,
    quantizer,
    quantizers_of_bandwidth,
)
from encodeonce.extract.encoders.codec import LoadedCodec
from encodeonce.store.codebooks import Codebooks
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch


class Encodec(CheckpointCodec):
    """EnCodec, mono and fed as it is: the 24 kHz model."""

    model_class = "EncodecModel"
    fields: Mapping[str, Any] = {
        "target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0],
        "sampling_rate": 24000,
        "hidden_size": 128,
        "num_filters": 32,
        "num_residual_layers": 1,
        "upsampling_ratios": [8, 5, 4, 2],
        "norm_type": "weight_norm",
        "kernel_size": 7,
        "last_kernel_size": 7,
        "residual_kernel_size": 3,
        "dilation_growth_rate": 2,
        "use_causal_conv": True,
        "pad_mode": "reflect",
        "compress": 2,
        "num_lstm_layers": 2,
        "codebook_size": 1024,
        "codebook_dim": None,
        "use_conv_shortcut": True,
    }

    def computed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        channels, normalise = config.get("audio_channels", 1), config.get("normalize", False)
        chunk = config.get("chunk_length_s")
        if channels != 1 or normalise or chunk is not None:
            raise EncoderError(
                f"{self.name} is an EnCodec with {channels} channel{'s' * (channels != 1)}"
                f"{', scaled by its loudness' * bool(normalise)}{f', in chunks of {chunk} s' if chunk else ''}, which codes alone "
                f"do not describe; use the mono model of 24 kHz (facebook/encodec_24khz)"
            )
        fields = super().computed(config)
        fields["target_bandwidths"] = [float(bandwidth) for bandwidth in fields["target_bandwidths"]]
        fields["codebook_dim"] = fields["codebook_dim"] or fields["hidden_size"]
        return fields

    def hop(self) -> int:
        return math.prod(self.config["upsampling_ratios"])

    def quantizers(self) -> int:
        rate = math.ceil(self.config["sampling_rate"] / self.hop())
        return quantizers_of_bandwidth(self.config["target_bandwidths"][-1], rate, self.config["codebook_size"])

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedEncodec":
        return LoadedEncodec(self, device, outputs)


class LoadedEncodec(LoadedCodec):
    """EnCodec at its widest bandwidth: that of fewer quantizers is the same codes without the last ones."""

    def __init__(self, codec: Encodec, device: str, outputs: Sequence[Output]) -> None:
        self.model = codec.model(device)
        count_in_integers(self.model)
        self.bandwidth = self.model.config.target_bandwidths[-1]
        layers = self.model.quantizer.layers
        books = Codebooks(tuple(quantizer(layer.codebook.embed, None, None) for layer in layers))
        super().__init__(codec, books, device, outputs)

    def encode_one(self, audio: "torch.Tensor") -> "torch.Tensor":
        return self.model.encode(audio[None, None], bandwidth=self.bandwidth).audio_codes[0, 0]

    def audio_of_codes(self, codes: "torch.Tensor") -> "torch.Tensor":
        return self.model.decode(codes[None, None], [None]).audio_values[0, 0]

    def audio_of_latents(self, latents: "torch.Tensor") -> "torch.Tensor":
        return self.model.decoder(latents[None])[0, 0]
