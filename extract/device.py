"""Features brought into their stored form on the device, and copied out while the next batch is computed.

What `store.quantize.keep` does to one utterance on a processor is done here to all of a batch, in the same order of the
same float32 operations, so that the bytes are the same. On CUDA audio goes up and values come down on streams of their
own, from and to pinned memory; nothing waits for the device before `InFlight.stored` does.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from encodeonce.extract.encoders.base import sound
from encodeonce.store.derive.chain import Stored
from encodeonce.store.layout import Output
from encodeonce.store.quantize import NotStorableError, decibels, keep, refusal

TORCH_DTYPES = {"float16": torch.float16, "float32": torch.float32, "int8": torch.int8}


def use(device: str) -> None:
    """Make a GPU the calling thread's own. Else that is the first, on which leaving a stream of another takes memory."""
    if torch.device(device).index is not None:
        torch.cuda.set_device(device)


class Device:
    """Streams to and from a device; on one without streams everything happens at once."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.cuda = self.device.type == "cuda"
        self._up = torch.cuda.Stream(self.device) if self.cuda else None
        self._down = torch.cuda.Stream(self.device) if self.cuda else None

    @property
    def by_itself(self) -> bool:
        """Whether it goes on with what it was given beside the thread that gave it."""
        return self.cuda

    def pad(self, arrays: Sequence[np.ndarray]) -> torch.Tensor:
        """`[B, S]` float32, padded with zeros, in memory of the host from which the device copies by itself."""
        padded = torch.empty((len(arrays), max(map(len, arrays))), pin_memory=self.cuda)
        for row, x in zip(padded.numpy(), arrays, strict=True):
            row[: len(x)] = x
            row[len(x) :] = 0
        return padded

    def upload(self, host: torch.Tensor) -> torch.Tensor:
        """The tensor on the device; work that is given to the device from here on finds it there."""
        if self._up is None:
            return host.to(self.device)
        with torch.cuda.stream(self._up):
            there = host.to(self.device, non_blocking=True)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._up)
        there.record_stream(current)
        return there

    def download(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], "torch.cuda.Event | None"]:
        """The tensors in the host's memory, and what to wait for before they are read."""
        if self._down is None:
            return [tensor.cpu() for tensor in tensors], None
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            here = []
            for tensor in tensors:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                here.append(host.copy_(tensor, non_blocking=True))
                tensor.record_stream(self._down)
            event = torch.cuda.Event(blocking=True)  # who waits for it leaves the core to those that decode
            event.record(self._down)
        return here, event

    def mark(self) -> "torch.cuda.Event | float":
        """A moment of the device's work, for `seconds_between`."""
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event


def seconds_between(first: "torch.cuda.Event | float", last: "torch.cuda.Event | float") -> float:
    """Seconds the device spent between two marks that it has reached."""
    if isinstance(first, float) or isinstance(last, float):
        assert isinstance(first, float)
        assert isinstance(last, float)
        return last - first
    return first.elapsed_time(last) / 1000


@dataclass(frozen=True)
class Packed:
    """One output of all utterances of a batch, one after the other, on the device.

    Values `[N, D]` as stored; the affine of int8 `[B, 2, D]`; and by frame `[N, 3]` float64 the sums of x^2 and of
    (x - stored)^2, and the greatest |x|. Where a value is not finite, or does not fit, the second sum is not finite
    either, or the affine of int8.
    """

    values: torch.Tensor
    affine: torch.Tensor | None
    sums: torch.Tensor


def pack(frames: Sequence[torch.Tensor], output: Output) -> Packed:
    """Features `[T, D]` float32 of the utterances of a batch as an output of float16, float32 or int8 stores them."""
    values = torch.cat(list(frames))
    affine = None
    if output.dtype == "int8":
        low = torch.stack([x.amin(0) for x in frames])
        high = torch.stack([x.amax(0) for x in frames])
        scale = (high - low) / torch.full_like(
            low, 255
        )  # by a plain number CUDA multiplies with its reciprocal instead
        offset = low + 128 * scale
        affine = torch.stack([scale, offset], 1)
        counts = torch.tensor([len(x) for x in frames], pin_memory=values.is_cuda).to(values.device, non_blocking=True)
        of = torch.repeat_interleave(counts, output_size=len(values))
        scales, offsets = scale[of], offset[of]
        steps = torch.where(scales > 0, scales, 1.0)
        levels = ((values - offsets) / steps).round().clamp(-128, 127)
        kept, restored = levels.to(torch.int8), levels * scales + offsets
    else:
        kept = values.to(TORCH_DTYPES[output.dtype])
        restored = kept.float()
    lost = (values - restored).square_().sum(1, dtype=torch.float64)
    sums = torch.stack([values.square().sum(1, dtype=torch.float64), lost, values.abs().amax(1).double()], 1)
    return Packed(kept, affine, sums)


class InFlight:
    """The values of a batch on their way from the device."""

    def __init__(
        self,
        device: Device,
        frames: Sequence[Mapping[str, torch.Tensor]],
        outputs: Sequence[Output],
        begun: "torch.cuda.Event | float",
    ) -> None:
        self._outputs = outputs
        self._counts = {o.name: [len(utterance[o.what]) for utterance in frames] for o in outputs}
        self._begun = begun
        tensors: list[torch.Tensor] = []
        self._at: dict[str, slice] = {}
        for output in outputs:
            given = [utterance[output.what] for utterance in frames]
            first = len(tensors)
            if output.dtype in TORCH_DTYPES:
                packed = pack(given, output)
                tensors += [t for t in (packed.values, packed.sums, packed.affine) if t is not None]
            else:
                tensors.append(torch.cat(given))
            self._at[output.name] = slice(first, len(tensors))
        self._ended = device.mark()
        self._here, self._arrived = device.download(tensors)

    def stored(self) -> list[dict[str, Stored | NotStorableError]]:
        """What is to be stored of each utterance, by output; waits for the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        columns = {output.name: self._column(output) for output in self._outputs}
        return [{name: column[i] for name, column in columns.items()} for i in range(len(next(iter(columns.values()))))]

    def seconds(self) -> float:
        """How long the device worked at it; known once the values are here."""
        return seconds_between(self._begun, self._ended)

    def _column(self, output: Output) -> list[Stored | NotStorableError]:
        arrays = [tensor.numpy() for tensor in self._here[self._at[output.name]]]
        stops = np.cumsum(self._counts[output.name])
        found: list[Stored | NotStorableError] = []
        for i, stop in enumerate(stops):
            span = slice(int(stop) - self._counts[output.name][i], int(stop))
            if output.dtype in TORCH_DTYPES:
                affine = arrays[2][i] if output.dtype == "int8" else None
                found.append(_stored(arrays[0][span], affine, arrays[1][span], output))
            else:
                found.append(kept_or_refused(arrays[0][span], output))
        return found


def kept_or_refused(values: np.ndarray, output: Output) -> Stored | NotStorableError:
    """What is to be stored of one utterance's values, or why it cannot be."""
    try:
        if output.dtype == "uint16" and not sound(values):
            raise refusal(output, math.nan)
        return keep(values, output)
    except NotStorableError as error:
        return error


def _stored(
    values: np.ndarray, affine: np.ndarray | None, sums: np.ndarray, output: Output
) -> Stored | NotStorableError:
    signal, noise = (float(total) for total in sums[:, :2].sum(0))
    fits = math.isfinite(noise) if affine is None else np.isfinite(affine).all()
    if fits:
        return values, affine, decibels(signal, noise)
    return refusal(output, float(sums[:, 2].max()))
