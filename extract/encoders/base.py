"""The interface of an encoder: light until it is loaded, so that a run with nothing to do never loads one."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "bfloat16", "float16")
NORMALISED = "zero mean, unit variance, epsilon 1e-7"


class EncoderError(Exception):
    """An encoder that cannot be had or used as asked; the message says the way out."""


class Encoder(ABC):
    """A frozen speech encoder, known by its files; nothing is loaded before `load`.

    Attributes:
        name: what its feature sets are called.
        source: where it comes from, for provenance (a hub id or a folder's name, no machine's path).
        sample_rate: samples a second of the audio it takes.
        samples_per_frame: samples from one frame to the next.
        receptive_field: samples the first frame needs.
        normalise: whether each utterance is scaled to zero mean and unit variance first.
        precisions: what it can compute in, the preferred one first.
        parallel: several threads may run one loaded encoder at the same time.
        note: something about the checkpoint that its user should know, or nothing.
        mixes_lengths: utterances of different lengths may share a batch, each with the result it has alone;
            otherwise only equal lengths do.
    """

    name: str
    source: str
    sample_rate: int = 16000
    samples_per_frame: int
    receptive_field: int
    normalise: bool = False
    note: str = ""
    precisions: tuple[str, ...] = PRECISIONS
    parallel: bool = True
    mixes_lengths: bool = False

    def frames(self, samples: int) -> int:
        """The exact number of frames for `samples` samples: a chain of convolutions without padding is one with
        kernel `receptive_field` and stride `samples_per_frame`."""
        return max(0, (samples - self.receptive_field) // self.samples_per_frame + 1)

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What this encoder computes, as JSON: its class and configuration, the digest of its weights."""

    @abstractmethod
    def outputs(self, layers: str, dtype: str) -> list[Output]:
        """The outputs that `--layers` asks for.

        Raises:
            EncoderError: a layer that it does not have.
        """

    @abstractmethod
    def load(self, device: str, precision: str, outputs: Sequence[Output]) -> "LoadedEncoder":
        """Load the weights, ready to compute the outputs and nothing beyond them."""

    def prepare(self, samples: np.ndarray) -> np.ndarray:
        """Scale one utterance `[samples]` as the checkpoint's preprocessor does."""
        if not self.normalise:
            return samples
        # transformers' Wav2Vec2FeatureExtractor.zero_mean_unit_var_norm
        return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)


class LoadedEncoder(ABC):
    """An encoder with its weights on a device."""

    @abstractmethod
    def forward(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "dict[str, torch.Tensor]":
        """Encode a batch `[B, S]` float32, zero-padded, of `lengths` samples: `[B, T, D]` float32 on the device, by `Output.what`.

        Frames past an utterance's own are of no meaning.
        """


def named_layers(layers: str, count: int, last: int) -> list[int]:
    """The layers that a `--layers` value names: `last`, `all`, or numbers and ranges such as `9,18-24`.

    Numbered as transformers numbers `hidden_states`: 0 is the input to the first layer, `last` the final output.
    """
    if layers == "last":
        return [last]
    if layers == "all":
        return list(range(count))
    chosen = set()
    for part in layers.split(","):
        named = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part.strip())
        if named is None:
            raise EncoderError(
                f"--layers {layers!r}: {part.strip()!r} is no layer; give last, all, or numbers such as 9,18-24"
            )
        low, high = int(named[1]), int(named[2] or named[1])
        if low > high or high >= count:
            raise EncoderError(
                f"--layers {layers!r}: no layer {part.strip()}; there are 0 to {count - 1} (0 is the input to the first)"
            )
        chosen.update(range(low, high + 1))
    return sorted(chosen)


def output_name(base: str, dtype: str) -> str:
    """The name of an output kept in a dtype: float16 is the plain name, others are told by a suffix."""
    return base if dtype == "float16" else f"{base}-{dtype}"


def single_output(layers: str, base: str, width: int, dtype: str, what: str) -> list[Output]:
    """The one output of an encoder that has no layers to choose from."""
    if layers not in ("last", "all"):
        raise EncoderError(f"--layers {layers!r}: this encoder has one output, {base}; leave --layers away")
    return [Output(output_name(base, dtype), width, dtype, what)]
