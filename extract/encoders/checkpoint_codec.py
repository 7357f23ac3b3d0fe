"""What all codecs that transformers loads share: a checkpoint folder, its identity, its quantizers."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.encoders.checkpoint import filled_in, load_pretrained, read_preprocessor, require_own_weights
from encodeonce.extract.encoders.codec import Codec
from encodeonce.extract.encoders.weights import weights_digest
from encodeonce.store.codebooks import Quantizer

if TYPE_CHECKING:
    import torch


class CheckpointCodec(Codec):
    """A codec in a folder in transformers' format. A family says which fields of its configuration make the codes."""

    model_class: str
    """transformers' class, named in the identity."""
    rate_field = "sampling_rate"
    """The configuration field that holds the sample rate, where no preprocessor says it."""
    width_field = "hidden_size"
    """The configuration field that tells the width of the latents."""
    fields: Mapping[str, Any]
    """The configuration fields that change the codes, with the defaults of the configuration class."""

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        name: str,
        source: str,
        cache: FileCache,
        published_normalise: bool | None = None,
    ) -> None:
        self.folder, self.name, self.source, self._cache = folder, name, source, cache
        require_own_weights(folder, config)
        self.config = self.computed(config)
        self.preprocessor = read_preprocessor(folder)
        self.sample_rate = int(self.preprocessor.get("sampling_rate", self.config[self.rate_field]))
        self.samples_per_frame = self.receptive_field = self.hop()
        self.codebook_sizes = (int(self.config["codebook_size"]),) * self.quantizers()
        self.width = int(self.config[self.width_field])
        if not self.codebook_sizes:
            raise EncoderError(f"{folder / 'config.json'} leaves {name} no quantizer")

    def computed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a configuration that change the codes, with defaults filled in."""
        return filled_in(self.fields, config)

    @abstractmethod
    def hop(self) -> int:
        """Samples from one frame to the next."""

    @abstractmethod
    def quantizers(self) -> int:
        """How many quantizers there are."""

    def identity(self) -> dict[str, Any]:
        return {
            "encoder": {"class": self.model_class, "config": self.config},
            "weights": weights_digest(self.folder, self._cache),
            "normalise": None,
        }

    def model(self, device: str) -> Any:
        """The model with its weights on a device, float32."""
        import transformers

        model = load_pretrained(getattr(transformers, self.model_class), self.folder)
        return model.to(device).eval().requires_grad_(False)


class MultipleOfHop(CheckpointCodec):
    """A codec whose audio transformers' DacFeatureExtractor pads with zeros to a multiple of its hop_length."""

    @property
    def multiple(self) -> int:
        """Samples that audio is padded to a multiple of."""
        return int(self.preprocessor.get("hop_length", self.hop()))

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        identity["encoder"]["config"] = self.config | {"padded_to_multiples_of": self.multiple}
        return identity

    def frames(self, samples: int) -> int:
        if samples < self.receptive_field:
            return 0
        return self.frames_of_multiple(-(-samples // self.multiple) * self.multiple)

    @abstractmethod
    def frames_of_multiple(self, samples: int) -> int:
        """Frames of padded audio."""

    def padded(self, audio: "torch.Tensor") -> "torch.Tensor":
        """Audio `[S]` as the encoder is fed with it."""
        import torch

        return torch.nn.functional.pad(audio, (0, -len(audio) % self.multiple))


def quantizers_of_bandwidth(kilobits: float, frame_rate: int, codebook_size: int) -> int:
    """Quantizers at so many kilobits a second: EncodecConfig.num_quantizers."""
    return int(1000 * kilobits // (frame_rate * math.ceil(math.log2(codebook_size))))


def quantizer(embedding: "torch.Tensor", weight: "torch.Tensor | None", bias: "torch.Tensor | None") -> Quantizer:
    """A quantizer from its weights: the projection a matrix `[D, d]`, or a convolution `[D, d, 1]`."""
    projection = None if weight is None else weight.reshape(weight.shape[:2])
    return Quantizer(_array(embedding), *(None if one is None else _array(one) for one in (projection, bias)))


def _array(tensor: "torch.Tensor") -> np.ndarray:
    return tensor.detach().cpu().numpy()


def count_in_integers(model: Any) -> None:
    """Let the convolutions of EnCodec and Mimi pad in whole numbers.

    transformers counts in float32, and beyond 2^24 samples (11.6 minutes at 24 kHz) loses the last one of some lengths.
    """
    for module in model.modules():
        if hasattr(module, "_get_extra_padding_for_conv1d"):
            stride = int(module.stride)
            module._get_extra_padding_for_conv1d = lambda states, stride=stride: -states.shape[-1] % stride
