"""From the utterances of a batch to its tensors: read into reused buffers, padded, restored, moved to the device."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from encodeonce.store.streaming.selection import Source

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor
else:
    Array = Any


class Features(NamedTuple):
    """An output's part of a batch: values `[B, T, D]`, zero after each utterance's frames, and lengths `[B]` in frames."""

    values: Array
    lengths: Array


@dataclass(frozen=True)
class Batch:
    """Utterances of a stream. On a device, `features` and `lengths` are its tensors; without one they are numpy arrays."""

    ids: list[str]
    outputs: dict[str, Features]
    """Every output by its name, the first one first."""
    columns: dict[str, list[Any]]
    """Columns of the table, a value an utterance."""
    epoch: int
    number: int
    """Its place in the epoch's global sequence."""

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, output: str) -> Features:
        return self.outputs[output]

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
        return self.columns["text"]

    def to(self, device: Any, non_blocking: bool = False) -> "Batch":
        """The same batch on a device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

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
        have = source.frames[chosen].astype(np.int64)
        first = np.minimum(np.rint(self.starts[chosen] * ratio).astype(np.int64), have - 1)
        most = max(1, round(self.frames * ratio))
        return first, np.minimum(have - first, most)


class Filler:
    """Makes batches. Threads may share it."""

    def __init__(
        self,
        sources: Sequence[Source],
        columns: Sequence[str],
        device: str | None,
        dtype: str | None,
        capacity_frames: int,
    ) -> None:
        self.sources, self._capacity_frames = list(sources), capacity_frames
        self._device, self._dtype = device, dtype
        first = self.sources[0]
        self._table = first.store.columns(list(dict.fromkeys(["id", *columns]))).take(pa.array(first.indices))
        self._side: Any = None

    def fill(self, chosen: np.ndarray, crop: Crop | None, epoch: int, number: int) -> Batch:
        """The batch of some of the stream's utterances.

        Raises:
            DamagedError: a shard cannot be read.
        """
        rows = self._table.take(pa.array(chosen))
        columns = {name: rows[name].to_pylist() for name in rows.column_names}
        if "metadata" in columns:
            columns["metadata"] = [json.loads(text) if text else {} for text in columns["metadata"]]
        outputs = {source.name: self._features(source, chosen, crop) for source in self.sources}
        return Batch(columns.pop("id"), outputs, columns, epoch, number)

    def _features(self, source: Source, chosen: np.ndarray, crop: Crop | None) -> Features:
        spec, indices = source.spec, source.indices[chosen]
        skip, lengths = (None, source.frames[chosen]) if crop is None else crop.of(source, chosen)
        lengths = lengths.astype(np.int64)
        values = self._room(source, lengths, np.dtype(spec.dtype))
        rows = values.reshape(-1).view(np.uint8).data if values.size else memoryview(b"")
        row_bytes = spec.width * values.itemsize
        starts = np.arange(len(lengths)) * (values.shape[1] * row_bytes)
        targets = [rows[a:b] for a, b in zip(starts.tolist(), (starts + lengths * row_bytes).tolist(), strict=True)]
        affines = np.empty((len(indices), 2, spec.width), np.float32) if spec.dtype == "int8" else None
        for part, positions, some in source.store.by_part(indices):
            wanted = [targets[i] for i in positions.tolist()]
            part.read_into(spec, some, wanted, None if skip is None else skip[positions])
            if affines is not None:
                part.read_affines_into(spec, some, [affines[i].data.cast("B") for i in positions.tolist()])
        if is_gpu(self._device):
            return self._upload(values, lengths, affines)
        if affines is not None:
            values = self._restored(source, values, lengths, affines)
        for i, length in enumerate(lengths.tolist()):
            values[i, length:] = 0
        return self._as_asked(values, lengths)

    def _room(self, source: Source, lengths: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """A buffer of the ring as `[B, T, D]`, not zeroed."""
        shape = len(lengths), int(lengths.max(initial=0)), source.spec.width
        size = shape[0] * shape[1] * shape[2] * dtype.itemsize
        # One size for all, also where int8 and what it is restored to take turns: then every buffer fits every batch.
        restored = source.spec.dtype == "int8" and not is_gpu(self._device)
        usual = self._capacity_frames * source.spec.width * (4 if restored else dtype.itemsize)
        return source.ring.take(max(size, usual))[:size].view(dtype).reshape(shape)

    def _restored(self, source: Source, codes: np.ndarray, lengths: np.ndarray, affines: np.ndarray) -> np.ndarray:
        values = self._room(source, lengths, np.dtype(np.float32))
        for i, (length, (scale, offset)) in enumerate(zip(lengths.tolist(), affines, strict=True)):
            np.multiply(codes[i, :length], scale, out=values[i, :length])
            values[i, :length] += offset
        return values

    def _as_asked(self, values: np.ndarray, lengths: np.ndarray) -> Features:
        """numpy arrays without a device; tensors otherwise, codes as int32 since torch can do little with uint16."""
        if self._device is None:
            return Features(values if self._dtype is None else values.astype(self._dtype), lengths)
        import torch

        tensor = torch.from_numpy(values.astype(np.int32) if values.dtype == np.uint16 else values)
        return Features(
            tensor if self._dtype is None else tensor.to(getattr(torch, self._dtype)), torch.from_numpy(lengths)
        )

    def _upload(self, values: np.ndarray, lengths: np.ndarray, affines: np.ndarray | None) -> Features:
        """Copy to the device on a stream beside the consumer's; restore, convert and zero the padding there.

        The copy is over when this returns: the pinned buffer is free, and the consumer has nothing to wait for.
        """
        import torch

        device = torch.device(self._device or "cuda")
        if self._side is None:
            self._side = torch.cuda.Stream(device)
        with torch.cuda.stream(self._side):
            near = torch.from_numpy(values.view(np.int16) if values.dtype == np.uint16 else values)
            far = near.to(device, non_blocking=True)
            counts = torch.from_numpy(lengths).to(device)
            if values.dtype == np.uint16:
                far = far.to(torch.int32) & 0xFFFF
            if affines is not None:
                scale, offset = torch.from_numpy(affines).to(device).unsqueeze(2).unbind(1)
                far = far.to(torch.float32) * scale + offset
            if self._dtype is not None:
                far = far.to(getattr(torch, self._dtype))
            past = torch.arange(far.shape[1], device=device)[None, :] >= counts[:, None]
            far.masked_fill_(past[:, :, None], 0)
        self._side.synchronize()
        return Features(far, counts)


def is_gpu(device: str | None) -> bool:
    """Whether tensors go to another memory than the processor's."""
    return device is not None and device.split(":")[0] == "cuda"
