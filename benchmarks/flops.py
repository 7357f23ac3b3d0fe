"""Floating-point operations of an encoder by formula, and what the machine does in a matrix product."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FAMILIES = ("hubert", "wav2vec2", "unispeech", "unispeech-sat")
"""Model types with the seven convolutions, projection, positional convolution and layers that the formula counts."""


@dataclass(frozen=True)
class Flops:
    """Operations of one utterance by part; a multiplication and an addition are two."""

    convolutions: float
    linear: float
    attention: float
    positional: float

    @property
    def total(self) -> float:
        """All parts."""
        return self.convolutions + self.linear + self.attention + self.positional


def count(config: Mapping[str, Any], samples: int) -> Flops | None:
    """The operations that one utterance of `samples` takes, or None for a family that the formula does not know.

    Two operations a weight and output position of each convolution; a layer's linear maps are 4 D^2 + 2 D F weights a frame,
    its attention 2 T D products and as many sums of them a frame, twice. Norms, softmax and activations are left out.

    Args:
        config: of transformers, as a mapping.
    """
    if config["model_type"] not in FAMILIES:
        return None
    width, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    convolutions, frames, channels = 0, samples, 1
    for filters, kernel, stride in zip(config["conv_dim"], config["conv_kernel"], config["conv_stride"], strict=True):
        frames = (frames - kernel) // stride + 1
        convolutions += 2 * frames * kernel * channels * filters
        channels = filters
    weights = channels * width + layers * (4 * width * width + 2 * width * inner)
    kernel, groups = config["num_conv_pos_embeddings"], config["num_conv_pos_embedding_groups"]
    return Flops(
        convolutions=convolutions,
        linear=2 * frames * weights,
        attention=layers * 4 * frames * frames * width,
        positional=2 * frames * kernel * width * (width // groups),
    )


def matmul_peak(device: str, precision: str, seconds: float = 1.0) -> float:
    """Operations a second in the best of many products of two square matrices, with torch's own number of threads.

    The matrices grow from 512 rows to at most 8,192, as long as a product takes less than 0.1 s. On a CPU oneDNN's product of weights that
    were packed before takes part: torch.mm is MKL's, which on AMD's processors reaches half of that in float32.
    """
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False

    def products(size: int) -> Iterator[Callable[[], object]]:
        return _products(*(torch.randn(size, size).to(device, getattr(torch, precision)) for _ in range(2)))

    best, size = 0.0, 512
    for product in products(size):  # the first one of a kind loads what it computes with
        _seconds(product, device)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        spent = min(_seconds(product, device) for product in products(size) for _ in range(3))
        best = max(best, 2 * size**3 / spent)
        size = min(8192, 2 * size) if spent < 0.1 else size
    return best


def _products(a: "torch.Tensor", b: "torch.Tensor") -> Iterator[Callable[[], object]]:
    import torch

    yield lambda: torch.mm(a, b)
    if a.device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(b)
        yield lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")


def _seconds(product: Callable[[], object], device: str) -> float:
    synchronise(device)
    begun = time.perf_counter()
    product()
    synchronise(device)
    return time.perf_counter() - begun


def synchronise(device: str) -> None:
    """Wait for what was begun on a GPU."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
