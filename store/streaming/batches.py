"""From the utterances of a batch to its tensors: read into reused buffers, padded, restored, moved to the device."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from encodeonce.store.layout import Output
from encodeonce.store.padded import utterance_bytes
from encodeonce.store.streaming.form import Form
from encodeonce.store.streaming.selection import Source

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor
else:
    Array = Any

SERIAL = 1 << 14
"""Values that torch converts in the calling thread."""


class Features(NamedTuple):
    """An output's part of a batch: values `[B, T, D]`, zero after each utterance's frames, and lengths `[B]` in frames."""

    values: Array
    lengths: Array


class Place(NamedTuple):
    """Where a batch stands in a stream."""

    epoch: int
    number: int
    """In the epoch's global sequence."""
    taken: int
    """Batches of the sequence that all ranks have taken together, with this step: where to `seek` to go on after it."""


@dataclass(frozen=True)
class Batch:
    """Utterances of a stream. On a device, `features` and `lengths` are its tensors; without one they are numpy arrays."""

    ids: list[str]
    outputs: dict[str, Features]
    """Every output by its name, the first one first."""
    columns: dict[str, list[Any]]
    """Columns of the table, a value an utterance."""
    place: Place

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, output: str) -> Features:
        if output not in self.outputs:
            raise KeyError(f"the batch has no output {output!r}; there are {', '.join(self.outputs)}")
        return self.outputs[output]

    @property
    def epoch(self) -> int:
        """Its epoch."""
        return self.place.epoch

    @property
    def number(self) -> int:
        """Its number in the epoch's global sequence."""
        return self.place.number

    @property
    def features(self) -> Array:
        """Values of the first output, `[B, T, D]`."""
        return next(iter(self.outputs.values())).values

    @property
    def lengths(self) -> Array:
        """Frames of the first output, `[B]`."""
        return next(iter(self.outputs.values())).lengths

    @property
    def text(self) -> list[str | None]:
        """The transcripts."""
        if "text" not in self.columns:
            raise KeyError("the stream gives no column 'text'; ask for it with columns=")
        return self.columns["text"]

    def to(self, device: Any, non_blocking: bool = False) -> "Batch":
        """The same batch on a device; of numpy arrays, as tensors."""
        import torch

        return self._each(lambda values: torch.as_tensor(values).to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory; a DataLoader asks for it."""
        return self._each(lambda tensor: tensor.pin_memory())

    def record_use(self) -> None:
        """Tell the allocator of a GPU that the calling stream uses tensors which another one made."""
        for values, lengths in self.outputs.values():
            for tensor in (values, lengths):
                if getattr(tensor, "is_cuda", False):
                    import torch

                    assert isinstance(tensor, torch.Tensor)
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))

    def _each(self, change: Any) -> "Batch":
        outputs = {name: Features(change(f.values), change(f.lengths)) for name, f in self.outputs.items()}
        return replace(self, outputs=outputs)


@dataclass(frozen=True)
class Crop:
    """The part of each utterance that an epoch takes: `frames` at most, from `starts` `[N]` on, of a source with this rate."""

    frames: int
    starts: np.ndarray
    frame_rate: float

    def of(self, source: Source, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First frame and number of frames of some utterances of a source, which may have another frame rate."""
        ratio = source.store.frame_rate / self.frame_rate
        have = source.store.frames[source.indices[chosen]].astype(np.int64)
        first = np.minimum(np.rint(self.starts[chosen] * ratio).astype(np.int64), have - 1)
        most = max(1, round(self.frames * ratio))
        return first, np.minimum(have - first, most)


class Filler:
    """Makes batches. Threads may share it, after `begin`."""

    def __init__(self, sources: Sequence[Source], columns: Sequence[str], form: Form, capacity_frames: int) -> None:
        self._sources, self._form, self._columns = list(sources), form, list(columns)
        first = self._sources[0]
        self._table = first.store.columns(list(dict.fromkeys(["id", *columns]))).take(pa.array(first.indices))
        self._capacities = {
            source.name: math.ceil(capacity_frames * source.store.frame_rate / first.store.frame_rate)
            for source in self._sources
        }
        self._side: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_side": None}

    def begin(self) -> None:
        """Take the GPU that is current in the calling thread, where no other was named: the readers' own may be another."""
        if self._form.on_gpu and self._side is None:
            import torch

            device = torch.device(self._form.device or "cuda")
            index = torch.cuda.current_device() if device.index is None else device.index
            self._side = torch.cuda.Stream(torch.device("cuda", index))

    def begin_thread(self) -> None:
        """What every thread does before its first batch."""
        if self._side is not None:
            import torch

            torch.cuda.set_device(self._side.device)

    def fill(self, chosen: np.ndarray, crop: Crop | None, place: Place) -> Batch:
        """The batch of some of the stream's utterances.

        Raises:
            DamagedError: a shard cannot be read.
        """
        rows = self._table.take(pa.array(chosen))
        ids = rows["id"].to_pylist()
        columns = {name: rows[name].to_pylist() for name in self._columns}
        if "metadata" in columns:
            columns["metadata"] = [json.loads(text) if text else {} for text in columns["metadata"]]
        outputs = {source.name: self._features(source, chosen, crop) for source in self._sources}
        return Batch(ids, outputs, columns, place)

    def _features(self, source: Source, chosen: np.ndarray, crop: Crop | None) -> Features:
        spec, indices = source.spec, source.indices[chosen]
        skip, lengths = (None, source.store.frames[indices]) if crop is None else crop.of(source, chosen)
        lengths = lengths.astype(np.int64)
        values = self._room(source, lengths, np.dtype(spec.dtype))
        targets = utterance_bytes(values, lengths)
        affines = np.empty((len(indices), 2, spec.width), np.float32) if spec.dtype == "int8" else None
        for part, positions, some in source.store.by_part(indices):
            wanted = [targets[i] for i in positions.tolist()]
            part.read_into(spec, some, wanted, None if skip is None else skip[positions])
            if affines is not None:
                part.read_affines_into(spec, some, [affines[i].reshape(-1).view(np.uint8) for i in positions.tolist()])
        if self._form.on_gpu:
            return self._upload(values, lengths, affines)
        if affines is not None:
            values = self._restored(source, values, lengths, affines)
        for i, length in enumerate(lengths.tolist()):
            values[i, length:] = 0
        return self._as_asked(source, values, lengths)

    def _room(self, source: Source, lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """A buffer of the ring as `[B, T, D]`, not zeroed."""
        shape = len(lengths), int(lengths.max(initial=0)), source.spec.width
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        usual = self._capacities[source.name] * source.spec.width * self._largest(source.spec)
        return source.ring.take(max(size, usual))[:size].view(dtype).reshape(shape)

    def _largest(self, spec: Output) -> int:
        """Bytes of a value in the largest buffer that its batches take: one size for all, then every buffer fits every batch."""
        stored = np.dtype(spec.dtype).itemsize
        if self._form.on_gpu or spec.dtype == "uint16":
            return stored
        return max(stored, 4 if spec.dtype == "int8" else 0, self._form.itemsize)

    def _restored(self, source: Source, codes: np.ndarray, lengths: np.ndarray, affines: np.ndarray) -> np.ndarray:
        values = self._room(source, lengths, np.dtype(np.float32))
        for i, (length, (scale, offset)) in enumerate(zip(lengths.tolist(), affines, strict=True)):
            np.multiply(codes[i, :length], scale, out=values[i, :length])
            values[i, :length] += offset
        return values

    def _as_asked(self, source: Source, values: np.ndarray, lengths: np.ndarray) -> Features:
        """numpy arrays without a device; tensors otherwise, codes as int32 since torch can do little with uint16."""
        dtype = None if values.dtype == np.uint16 else self._form.dtype  # codes are numbers of things, not quantities
        if self._form.device is None:
            return Features(values if dtype is None else values.astype(dtype, copy=False), lengths)
        import torch

        tensor = torch.from_numpy(values.astype(np.int32) if values.dtype == np.uint16 else values)
        if dtype is not None and tensor.dtype != getattr(torch, dtype):
            tensor = self._converted(source, tensor, lengths, getattr(torch, dtype))
        return Features(tensor.to(self._form.device), torch.from_numpy(lengths).to(self._form.device))

    def _converted(
        self, source: Source, tensor: "torch.Tensor", lengths: np.ndarray, dtype: "torch.dtype"
    ) -> "torch.Tensor":
        """In another dtype, in a buffer of the ring.

        In pieces that torch takes for one thread: for more it would give every reading thread a pool of OpenMP threads, to wait
        beside those of the training. numpy needs no pieces, and fifteen times as long.
        """
        import torch

        words = np.dtype(f"i{dtype.itemsize}")  # numpy has no bfloat16
        room = torch.from_numpy(self._room(source, lengths, words)).view(dtype)
        for piece, target in zip(tensor.view(-1).split(SERIAL), room.view(-1).split(SERIAL), strict=True):
            target.copy_(piece)
        return room

    def _upload(self, values: np.ndarray, lengths: np.ndarray, affines: np.ndarray | None) -> Features:
        """Copy to the GPU on a stream beside the consumer's; restore, convert and zero the padding there.

        The copy is over when this returns: the pinned buffer is free, and the consumer has nothing to wait for.
        """
        import torch

        side = self._side
        with torch.cuda.stream(side):
            near = torch.from_numpy(values.view(np.int16) if values.dtype == np.uint16 else values)
            far = near.to(side.device, non_blocking=True)
            counts = torch.from_numpy(lengths).to(side.device)
            if values.dtype == np.uint16:
                far = far.to(torch.int32) & 0xFFFF
            elif affines is not None:
                scale, offset = torch.from_numpy(affines).to(side.device).unsqueeze(2).unbind(1)
                far = far.to(torch.float32) * scale + offset
            if self._form.dtype is not None and values.dtype != np.uint16:
                far = far.to(getattr(torch, self._form.dtype))
            past = torch.arange(far.shape[1], device=side.device)[None, :] >= counts[:, None]
            far.masked_fill_(past[:, :, None], 0)
        side.synchronize()
        return Features(far, counts)
