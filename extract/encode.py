"""A batch of utterances in, their frames out: normalise, cut, pad, run the encoder, join, and never pass on a NaN."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import numpy as np
import torch
from encodeonce.extract.batching import Cutting, Window, windows
from encodeonce.extract.device import Device, InFlight, kept_or_refused
from encodeonce.extract.encoders.base import Encoder, EncoderError, LoadedEncoder, first_line, sound
from encodeonce.store.derive.chain import Stored
from encodeonce.store.layout import Output
from encodeonce.store.quantize import NotStorableError

Kept = dict[str, Stored | NotStorableError]
"""What is to be stored of an utterance, or why it cannot be, by output."""


class Pending(Protocol):
    """A batch that was given to the encoder."""

    @property
    def in_flight(self) -> bool:
        """Whether the device is still at it; else `stored` is work for the thread that encoded."""
        ...

    def stored(self) -> list[Kept]:
        """What is to be stored of each utterance; waits until it is there."""
        ...

    def seconds(self) -> float:
        """How long the device worked at it beside the thread that called it; known once the values are here."""
        ...


@dataclass(frozen=True)
class OnHost:
    """The frames of a batch that was encoded at once, in the host's memory."""

    frames: Sequence[Mapping[str, np.ndarray]]
    outputs: Sequence[Output]
    in_flight: bool = False

    def stored(self) -> list[Kept]:
        return [_kept(frames, self.outputs) for frames in self.frames]

    def seconds(self) -> float:
        return 0.0


class DeviceError(EncoderError):
    """A GPU did not do what it was asked to: its memory is full, or it has a fault. Another may do it."""


@dataclass
class BatchEncoder:
    """Encodes batches with one loaded encoder; keeps count of what had to be encoded again in float32.

    Several threads may use it at the same time: where the encoder is not `parallel` they take turns.
    """

    encoder: Encoder
    loaded: LoadedEncoder
    cutting: Cutting
    precision: str
    load_float32: Callable[[], LoadedEncoder]
    device: str = "cpu"
    again: int = 0
    _float32: LoadedEncoder | None = field(default=None, repr=False)
    _loading: Lock = field(default_factory=Lock, repr=False)

    def __post_init__(self) -> None:
        self._device = Device(self.device)
        self._turn: AbstractContextManager[object] = nullcontext() if self.encoder.parallel else Lock()

    @property
    def by_itself(self) -> bool:
        """Whether the device goes on with a batch beside the thread that gave it."""
        return self._device.by_itself

    def encode(self, audio: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Frames `[T, D]` float32 by `Output.what`, for each utterance `[samples]` float32 (normalised already).

        Frames that are not finite even in float32 come back as they are: the caller refuses them.
        """
        return self._or_again(_on_host(self.frames(self.loaded, audio)[0]), audio)

    def begin(self, audio: Sequence[np.ndarray], outputs: Sequence[Output]) -> Pending:
        """Begin to encode a batch for some outputs. On CUDA the device goes on by itself; else it is done on return."""
        with torch.inference_mode():
            frames, begun = self.frames(self.loaded, audio)
            there = all(v.device.type == self._device.device.type for f in frames for v in f.values())
            if self.by_itself and there:
                return _Checked(self, audio, outputs, InFlight(self._device, frames, outputs, begun))
        return OnHost(self._or_again(_on_host(frames), audio), outputs)

    @contextmanager
    def failing_plainly(self, what: str) -> Iterator[None]:
        """Say in a line what could not be done in the block, which encodes `what`.

        Raises:
            DeviceError: a GPU failed.
            EncoderError: the encoder did on a processor, as it would on any.
        """
        try:
            yield
        except RuntimeError as error:
            raise (EncoderError if self.device == "cpu" else DeviceError)(
                f"{self.encoder.name} in {self.precision} failed on {what}: {first_line(error)}; try a smaller --batch-seconds"
            ) from error

    def take_again(self) -> int:
        """How many were encoded again since this was asked last."""
        with self._loading:
            again, self.again = self.again, 0
        return again

    def _or_again(
        self, frames: list[dict[str, np.ndarray]], audio: Sequence[np.ndarray]
    ) -> list[dict[str, np.ndarray]]:
        """The frames of a batch; encoded again where a low precision made NaN or infinity."""
        if self.precision == "float32" or all(sound(v) for f in frames for v in f.values()):
            return frames
        return self._again(audio)

    def _again(self, audio: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        with self._loading:
            self._float32 = self._float32 or self.load_float32()
            self.again += len(audio)
        return _on_host(self.frames(self._float32, audio)[0])

    def frames(
        self, loaded: LoadedEncoder, audio: Sequence[np.ndarray]
    ) -> "tuple[list[dict[str, torch.Tensor]], torch.cuda.Event | float]":
        """The frames of each utterance where the encoder left them, and a mark of when it began: the audio was there."""
        rate = self.encoder.sample_rate
        cut, context = int(self.cutting.cut_seconds * rate), int(self.cutting.context_seconds * rate)
        hop, field_ = self.encoder.samples_per_frame, self.encoder.receptive_field
        if self.encoder.whole:
            pieces = [(i, Window(0, len(x), 0, self.encoder.frames(len(x)))) for i, x in enumerate(audio)]
        else:
            pieces = [(i, w) for i, x in enumerate(audio) for w in windows(len(x), hop, field_, cut, context)]
        parts: list[dict[str, list[torch.Tensor]]] = [{} for _ in audio]
        begun = None
        for group in self._groups(pieces, len(audio)):
            arrays = [audio[i][w.start : w.stop] for i, w in group]
            padded = self._device.pad(arrays)
            padded = self._device.upload(padded) if loaded.on_device else padded
            begun = begun or self._device.mark()
            for (i, window), frames in zip(group, self._forward(loaded, padded, arrays), strict=True):
                for name, values in frames.items():
                    parts[i].setdefault(name, []).append(values[window.first : window.last])
        joined = [{name: torch.cat(v) if len(v) > 1 else v[0] for name, v in p.items()} for p in parts]
        return joined, begun or self._device.mark()

    def _groups(self, pieces: list[tuple[int, Window]], most: int) -> list[list[tuple[int, Window]]]:
        """The pieces in runs that may share a forward pass, at most as many as there are utterances in the batch."""
        groups: list[list[tuple[int, Window]]] = []
        for piece in pieces:
            length = piece[1].stop - piece[1].start
            if groups and len(groups[-1]) < most:
                first = groups[-1][0][1]
                if self.encoder.mixes_lengths or first.stop - first.start == length:
                    groups[-1].append(piece)
                    continue
            groups.append([piece])
        return groups

    def _forward(
        self, loaded: LoadedEncoder, padded: torch.Tensor, arrays: Sequence[np.ndarray]
    ) -> list[dict[str, torch.Tensor]]:
        lengths = [len(x) for x in arrays]
        counts = [self.encoder.frames(n) for n in lengths]
        with self._turn:
            outputs = loaded.forward(padded, lengths)
        for name, values in outputs.items():
            if values.shape[1] < max(counts):
                raise RuntimeError(f"{name}: the encoder gave {values.shape[1]} frames where {max(counts)} were due")
        return [{name: values[i, :count] for name, values in outputs.items()} for i, count in enumerate(counts)]


@dataclass(frozen=True)
class _Checked:
    """A batch in flight; utterances with NaN or infinity in a low precision are encoded once more in float32."""

    encoder: BatchEncoder
    audio: Sequence[np.ndarray]
    outputs: Sequence[Output]
    flight: InFlight
    in_flight: bool = True

    def stored(self) -> list[Kept]:
        kept = self.flight.stored()
        refused = [i for i, each in enumerate(kept) if any(isinstance(v, NotStorableError) for v in each.values())]
        if refused and self.encoder.precision != "float32":
            for i, frames in zip(refused, self.encoder._again([self.audio[i] for i in refused]), strict=True):
                kept[i] = _kept(frames, self.outputs)
        return kept

    def seconds(self) -> float:
        return self.flight.seconds()


def _on_host(frames: Sequence[Mapping[str, torch.Tensor]]) -> list[dict[str, np.ndarray]]:
    return [{name: values.cpu().numpy() for name, values in each.items()} for each in frames]


def _kept(frames: Mapping[str, np.ndarray], outputs: Sequence[Output]) -> Kept:
    return {output.name: kept_or_refused(frames[output.what], output) for output in outputs}
