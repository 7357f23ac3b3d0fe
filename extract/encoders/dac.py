"""DAC, Descript's codec, through transformers: convolutions, residual quantizers of few dimensions."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from encodeonce.extract.encoders.checkpoint_codec import MultipleOfHop, quantizer
from encodeonce.extract.encoders.codec import LoadedCodec
from encodeonce.store.codebooks import Codebooks
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch


class Dac(MultipleOfHop):
    """Descript's codec, at each of its rates."""

    model_class = "DacModel"
    fields: Mapping[str, Any] = {
        "encoder_hidden_size": 64,
        "downsampling_ratios": [2, 4, 8, 8],
        "n_codebooks": 9,
        "codebook_size": 1024,
        "codebook_dim": 8,
        "hidden_size": None,
        "sampling_rate": 16000,
    }

    def computed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().computed(config)
        fields["hidden_size"] = fields["hidden_size"] or fields["encoder_hidden_size"] * 2 ** len(
            fields["downsampling_ratios"]
        )
        return fields

    def hop(self) -> int:
        return math.prod(self.config["downsampling_ratios"])

    def quantizers(self) -> int:
        return int(self.config["n_codebooks"])

    def frames_of_multiple(self, samples: int) -> int:
        for stride in self.config["downsampling_ratios"]:  # convolutions of 2 s, stride s, padded on either side
            samples = (samples + 2 * math.ceil(stride / 2) - 2 * stride) // stride + 1
        return samples

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedDac":
        return LoadedDac(self, device, outputs)


class LoadedDac(LoadedCodec):
    """DAC: small codebooks, each with a projection into the width of the latents."""

    def __init__(self, codec: Dac, device: str, outputs: Sequence[Output]) -> None:
        self.codec, self.model = codec, codec.model(device)
        quantizers = [
            quantizer(one.codebook.weight, one.out_proj.weight, one.out_proj.bias)
            for one in self.model.quantizer.quantizers
        ]
        super().__init__(codec, Codebooks(tuple(quantizers)), device, outputs)

    def encode_one(self, audio: "torch.Tensor") -> "torch.Tensor":
        return self.model.encode(self.codec.padded(audio)[None, None]).audio_codes[0]

    def audio_of_codes(self, codes: "torch.Tensor") -> "torch.Tensor":
        return self.model.decode(audio_codes=codes[None]).audio_values[0]

    def audio_of_latents(self, latents: "torch.Tensor") -> "torch.Tensor":
        return self.model.decode(quantized_representation=latents[None]).audio_values[0]
