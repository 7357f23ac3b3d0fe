"""The interface of an encoder: light until it is loaded, so that a run with nothing to do never loads one."""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from encodeonce.store.codebooks import Codebooks, span_suffix
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    import torch

PRECISIONS = ("float32", "bfloat16", "float16")
NORMALISED = "zero mean, unit variance, epsilon 1e-7"


class EncoderError(Exception):
    """An encoder that cannot be had or used as asked; the message says the way out."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def sound(values: np.ndarray) -> bool:
    """Whether an encoder made all of these: features that are finite, codes and units that are not negative."""
    return bool((values >= 0).all() if values.dtype.kind == "i" else np.isfinite(values).all())


class Encoder(ABC):
    """A frozen speech encoder, known by its files; nothing is loaded before `load`.

    Attributes:
        name: what its feature sets are called.
        source: where it comes from, for provenance (a hub id or a folder's name, no machine's path).
        sample_rate: samples a second of the audio it takes.
        samples_per_frame: samples from one frame to the next.
        receptive_field: samples the first frame needs.
        longest_seconds: windows into which audio is cut are never longer than this; None: as long as the user likes.
        whole: audio is never cut, however long.
        pads_to: samples that every utterance is padded to, whatever its length.
        normalise: whether each utterance is scaled to zero mean and unit variance first.
        precisions: what it can compute in, the preferred one first.
        parallel: several threads may run one loaded encoder at the same time.
        note: something about the checkpoint that its user should know, or nothing.
        one_thread: on a CPU it computes in one thread, however many cores there are: what it rounds decides what is stored.
        mixes_lengths: utterances of different lengths may share a batch, each with the result it has alone;
            otherwise only equal lengths do.
        default_outputs: what is stored where the user does not say.
    """

    name: str
    source: str
    sample_rate: int = 16000
    samples_per_frame: int
    receptive_field: int
    longest_seconds: float | None = None
    whole: bool = False
    pads_to: int = 0
    normalise: bool = False
    note: str = ""
    precisions: tuple[str, ...] = PRECISIONS
    parallel: bool = True
    one_thread: bool = False
    mixes_lengths: bool = False
    default_outputs: str = "last"

    def frames(self, samples: int) -> int:
        """The exact number of frames for `samples` samples: a chain of convolutions without padding is one with
        kernel `receptive_field` and stride `samples_per_frame`."""
        return max(0, (samples - self.receptive_field) // self.samples_per_frame + 1)

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What this encoder computes, as JSON: its class and configuration, the digest of its weights."""

    @abstractmethod
    def outputs(self, chosen: str, dtype: str) -> list[Output]:
        """The outputs that `--layers` (`--outputs`) asks for.

        Raises:
            EncoderError: a layer, or something else, that it does not have.
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
    """An encoder with its weights on a device.

    Attributes:
        on_device: it takes audio on its device; else in the host's memory, where it computes with numpy first.
    """

    on_device: bool = True

    @abstractmethod
    def forward(self, audio: "torch.Tensor", lengths: Sequence[int]) -> "dict[str, torch.Tensor]":
        """Encode a batch `[B, S]` float32, zero-padded, of `lengths` samples: `[B, T, D]` on the device, by `Output.what`.

        Features are float32, codes and units int64, -1 where there is none. Frames past an utterance's own are of no meaning.
        """

    def codebooks(self, output: Output) -> "Codebooks | None":
        """What the codes or units of an output stand for; None for features."""
        return None


@dataclass(frozen=True, slots=True)
class Chosen:
    """Hidden states that become one output: one layer, or the mean of several in a row."""

    first: int
    last: int
    mean: bool = False

    @property
    def name(self) -> str:
        """The plain name of the output."""
        return f"mean-{self.first:02d}-{self.last:02d}" if self.mean else f"layer-{self.first:02d}"

    @property
    def what(self) -> str:
        """What the output says it holds."""
        return f"mean(hidden_states[{self.first}-{self.last}])" if self.mean else f"hidden_states[{self.first}]"

    @classmethod
    def of(cls, what: str) -> "Chosen":
        """The layers that an output of a checkpoint says it holds."""
        found = re.fullmatch(r"(mean\()?hidden_states\[(\d+)(?:-(\d+))?\]\)?", what)
        assert found is not None, what
        return cls(int(found[2]), int(found[3] or found[2]), found[1] is not None)


def named_layers(layers: str, count: int, last: int) -> list[Chosen]:
    """The layers that a `--layers` value names: `last`, `all`, numbers and ranges such as `9,18-24`, means as `mean:18-24`.

    Numbered as transformers numbers `hidden_states`: 0 is the input to the first layer, `last` the final output.
    """
    chosen: set[Chosen] = set()
    for part in (part.strip() for part in layers.split(",")):
        named = re.fullmatch(r"(mean:)?([0-9]+)(?:-([0-9]+))?", part)
        if part == "last":
            chosen.add(Chosen(last, last))
        elif part in ("all", "mean:all"):
            spans = [(0, count - 1)] if part != "all" else [(number, number) for number in range(count)]
            chosen.update(Chosen(first, final, part != "all") for first, final in spans)
        elif named is None:
            raise EncoderError(
                f"--layers {layers!r}: {part!r} is no layer; give last, all, numbers such as 9,18-24, or mean:18-24"
            )
        else:
            low, high = int(named[2]), int(named[3] or named[2])
            _check_order(f"--layers {layers!r}", part, low, high)
            if named[1] and low == high:
                raise EncoderError(f"--layers {layers!r}: {part} is one layer; a mean takes a range, such as mean:2-4")
            if high >= count:
                raise EncoderError(
                    f"--layers {layers!r}: no layer {part}; there are 0 to {count - 1} (0 is the input to the first)"
                )
            if named[1]:
                chosen.add(Chosen(low, high, mean=True))
            else:
                chosen.update(Chosen(number, number) for number in range(low, high + 1))
    return sorted(chosen, key=lambda one: (one.mean, one.first, one.last))


@dataclass(frozen=True, slots=True)
class Quantizers:
    """Codes, or their vectors summed, of some of a codec's quantizers in a row; numbered from 0."""

    kind: Literal["codes", "latents"]
    first: int
    last: int

    @property
    def what(self) -> str:
        """What the output says it holds."""
        return f"{self.kind}[{self.first}-{self.last}]"

    @property
    def numbers(self) -> range:
        """The numbers of the quantizers."""
        return range(self.first, self.last + 1)

    @classmethod
    def of(cls, what: str) -> "Quantizers":
        """The quantizers that an output of a codec says it holds."""
        found = re.fullmatch(r"(codes|latents)\[(\d+)-(\d+)\]", what)
        assert found is not None, what
        return cls("codes" if found[1] == "codes" else "latents", int(found[2]), int(found[3]))


def codec_outputs(chosen: str, sizes: Sequence[int], width: int, dtype: str) -> list[Output]:
    """The outputs of a codec that `--outputs` names: `codes`, `latents`, and those of some quantizers as `latents:1-7`.

    Codes are `[T, Q]` uint16, one column a quantizer; latents the sum of the quantizers' vectors, `[T, width]` in the dtype.

    Args:
        sizes: the size of each codebook.
        width: of the latents.
    """
    outputs: dict[str, Output] = {}
    for part in (part.strip() for part in chosen.split(",")):
        named = re.fullmatch(r"(codes|latents)(?::([0-9]+)(?:-([0-9]+))?)?", part)
        if named is None:
            raise EncoderError(
                f"--outputs {chosen!r}: {part!r} is no output of a codec; give codes, latents, or those of some "
                f"quantizers, such as codes:0{f' or latents:1-{len(sizes) - 1}' if len(sizes) > 2 else ''}"
            )
        low, high = int(named[2] or 0), int(named[3] or named[2] or len(sizes) - 1)
        _check_order(f"--outputs {chosen!r}", part, low, high)
        if high >= len(sizes):
            raise EncoderError(f"--outputs {chosen!r}: no quantizers {part}; there are 0 to {len(sizes) - 1}")
        which = Quantizers("codes" if named[1] == "codes" else "latents", low, high)
        name = part.split(":")[0] + ("" if (low, high) == (0, len(sizes) - 1) else span_suffix(low, high))
        if which.kind == "codes":
            some = tuple(sizes[low : high + 1])
            output = Output(name, len(some), "uint16", which.what, codebook_sizes=some)
        else:
            output = Output(output_name(name, dtype), width, dtype, which.what)
        outputs[output.name] = output
    return list(outputs.values())


def _check_order(asked: str, part: str, low: int, high: int) -> None:
    if low > high:
        raise EncoderError(f"{asked}: {part} runs backwards; give the lower number first")


def output_name(base: str, dtype: str) -> str:
    """The name of an output kept in a dtype: float16 is the plain name, others are told by a suffix."""
    return base if dtype == "float16" else f"{base}-{dtype}"


def single_output(chosen: str, base: str, width: int, dtype: str, what: str) -> list[Output]:
    """The one output of an encoder that has no layers to choose from."""
    if chosen not in ("last", "all", base):
        raise EncoderError(f"--layers {chosen!r}: this encoder has one output, {base}; leave --layers away")
    return [Output(output_name(base, dtype), width, dtype, what)]
