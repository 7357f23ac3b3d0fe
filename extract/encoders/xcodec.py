"""X-Codec and Higgs Audio's tokenizer through transformers: DAC's encoder and a self-supervised one, quantized together."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.checkpoint import filled_in
from encodeonce.extract.encoders.checkpoint_codec import MultipleOfHop, quantizer, quantizers_of_bandwidth
from encodeonce.extract.encoders.codec import LoadedCodec
from encodeonce.extract.encoders.ssl import Hubert, WavLM
from encodeonce.store.codebooks import Codebooks
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

ACOUSTIC: dict[str, Any] = {"encoder_hidden_size": 64, "downsampling_ratios": [8, 5, 4, 2], "hidden_size": 256}
"""The fields of DacConfig that its encoder is made from, with XcodecConfig's defaults."""
SEMANTIC: dict[str, Mapping[str, Any]] = {"hubert": Hubert.fields, "wavlm": WavLM.fields}


class Xcodec(MultipleOfHop):
    """X-Codec: one codebook an utterance frame and quantizer for what is said and how it sounds."""

    model_class = "XcodecModel"
    rate_field = "sample_rate"
    fields: Mapping[str, Any] = {
        "target_bandwidths": [0.5, 1.0, 1.5, 2.0, 4.0],
        "sample_rate": 16000,
        "kernel_size": 3,
        "channel_ratios": [1, 1],
        "strides": [1, 1],
        "block_dilations": [1, 1],
        "unit_kernel_size": 3,
        "codebook_size": 1024,
        "codebook_dim": None,
        "acoustic_model_config": None,
        "semantic_model_config": None,
    }

    def computed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        fields = filled_in(self.fields, config)
        acoustic = filled_in(ACOUSTIC, fields["acoustic_model_config"] or {})
        given = fields["semantic_model_config"] or {}
        kind = given.get("model_type", "hubert")
        if kind not in SEMANTIC:
            raise EncoderError(
                f"{self.name} listens with {kind!r}, which is not known here; known are {' and '.join(SEMANTIC)}"
            )
        semantic = {"model_type": kind, **filled_in(SEMANTIC[kind], given)}
        width = acoustic["hidden_size"] + semantic["hidden_size"]
        return fields | {
            "target_bandwidths": [float(bandwidth) for bandwidth in fields["target_bandwidths"]],
            "codebook_dim": fields["codebook_dim"] or width,
            "acoustic_model_config": acoustic,
            "semantic_model_config": semantic,
            "hidden_size": width,
        }

    def hop(self) -> int:
        return math.prod(self.config["acoustic_model_config"]["downsampling_ratios"])

    def quantizers(self) -> int:
        bandwidth, rate = self.config["target_bandwidths"][-1], math.ceil(self.config["sample_rate"] / self.hop())
        # XcodecResidualVectorQuantization.get_num_quantizers_for_bandwidth, which rounds in another order
        used = max(1, math.floor(bandwidth / (math.log2(self.config["codebook_size"]) * rate / 1000)))
        return min(quantizers_of_bandwidth(bandwidth, rate, self.config["codebook_size"]), used)

    def frames_of_multiple(self, samples: int) -> int:
        count = self.semantic_frames(samples)
        for stride in self.config["strides"]:  # SemanticEncoder
            kernel = 3 if stride == 1 else 2 * stride
            count = (count + 2 * ((kernel - 1) // 2) - kernel) // stride + 1
        return count

    def semantic_frames(self, samples: int) -> int:
        """Frames that the self-supervised encoder gives."""
        return self._convolved(samples + 2 * (self.hop() // 2))

    def _convolved(self, samples: int) -> int:
        semantic = self.config["semantic_model_config"]
        for kernel, stride in zip(semantic["conv_kernel"], semantic["conv_stride"], strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedXcodec":
        return LoadedXcodec(self, device, outputs)


class HiggsAudioTokenizer(Xcodec):
    """The tokenizer of Higgs Audio 2: X-Codec at 24 kHz, its semantic part at 16 kHz, codebooks with projections."""

    model_class = "HiggsAudioV2TokenizerModel"
    fields: Mapping[str, Any] = {
        **Xcodec.fields,
        "sample_rate": 24000,
        "codebook_dim": 64,
        "semantic_sample_rate": 16000,
        "downsample_factor": 320,
    }
    PADDING: ClassVar[int] = 160
    """Zeros that HiggsAudioV2TokenizerModel puts on either side of the resampled audio."""

    def semantic_frames(self, samples: int) -> int:
        rate, semantic_rate = self.config["sample_rate"], self.config["semantic_sample_rate"]
        # HiggsAudioV2TokenizerConfig.semantic_downsample_factor
        every = int(self.hop() / (rate / semantic_rate) / self.config["downsample_factor"])
        count = self._convolved(-(-samples * semantic_rate // rate) + 2 * self.PADDING)
        return -(-count // every) if every > 1 else count


class LoadedXcodec(LoadedCodec):
    """X-Codec at its widest bandwidth. The latents are what its decoder takes, before the projection into DAC's width."""

    def __init__(self, codec: Xcodec, device: str, outputs: Sequence[Output]) -> None:
        self.codec, self.model = codec, codec.model(device)
        quantizers = []
        for layer in self.model.quantizer.quantizers[: len(codec.codebook_sizes)]:
            out = getattr(layer, "project_out", None)
            quantizers.append(quantizer(layer.codebook.embed, out and out.weight, out and out.bias))
        super().__init__(codec, Codebooks(tuple(quantizers)), device, outputs)

    def encode_one(self, audio: "torch.Tensor") -> "torch.Tensor":
        return self.model.encode(self.codec.padded(audio)[None, None]).audio_codes[0]

    def audio_of_codes(self, codes: "torch.Tensor") -> "torch.Tensor":
        return self.model.decode(codes[None]).audio_values[0, 0]

    def audio_of_latents(self, latents: "torch.Tensor") -> "torch.Tensor":
        return self.model.acoustic_decoder(self.model.fc2(latents.T).T[None])[0, 0]
