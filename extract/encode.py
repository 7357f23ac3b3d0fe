"""A batch of utterances in, their frames out: normalise, cut, pad, run the encoder, join, and never pass on a NaN."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
import torch
from encodeonce.extract.batching import Cutting, Window, windows
from encodeonce.extract.encoders.base import Encoder, LoadedEncoder


@dataclass
class BatchEncoder:
    """Encodes batches with one loaded encoder; keeps count of what had to be encoded again in float32."""

    encoder: Encoder
    loaded: LoadedEncoder
    cutting: Cutting
    precision: str
    load_float32: Callable[[], LoadedEncoder]
    again: int = 0
    _float32: LoadedEncoder | None = field(default=None, repr=False)
    _loading: Lock = field(default_factory=Lock, repr=False)

    def encode(self, audio: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Frames `[T, D]` float32 by `Output.what`, for each utterance `[samples]` float32 (normalised already).

        Frames that are not finite even in float32 come back as they are: the caller refuses them.
        """
        rate = self.encoder.sample_rate
        cut, context = int(self.cutting.cut_seconds * rate), int(self.cutting.context_seconds * rate)
        hop, field_ = self.encoder.samples_per_frame, self.encoder.receptive_field
        if self.encoder.whole:
            pieces = [(i, Window(0, len(x), 0, self.encoder.frames(len(x)))) for i, x in enumerate(audio)]
        else:
            pieces = [(i, w) for i, x in enumerate(audio) for w in windows(len(x), hop, field_, cut, context)]
        parts: list[dict[str, list[np.ndarray]]] = [{} for _ in audio]
        for group in self._groups(pieces, len(audio)):
            arrays = [audio[i][w.start : w.stop] for i, w in group]
            for (i, window), frames in zip(group, self._forward(arrays), strict=True):
                for name, values in frames.items():
                    parts[i].setdefault(name, []).append(values[window.first : window.last])
        return [{name: np.concatenate(v) if len(v) > 1 else v[0] for name, v in p.items()} for p in parts]

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

    def _forward(self, arrays: Sequence[np.ndarray]) -> list[dict[str, np.ndarray]]:
        lengths = [len(x) for x in arrays]
        padded = torch.zeros(len(arrays), max(lengths))
        for row, x in zip(padded, arrays, strict=True):
            row[: len(x)] = torch.from_numpy(x)
        counts = [self.encoder.frames(n) for n in lengths]
        frames = self._frames(self.loaded, padded, lengths, counts)
        if self.precision != "float32" and not all(np.isfinite(v).all() for f in frames for v in f.values()):
            with self._loading:
                self._float32 = self._float32 or self.load_float32()
                self.again += len(arrays)
            frames = self._frames(self._float32, padded, lengths, counts)
        return frames

    @staticmethod
    def _frames(
        loaded: LoadedEncoder, padded: torch.Tensor, lengths: Sequence[int], counts: Sequence[int]
    ) -> list[dict[str, np.ndarray]]:
        outputs = {name: values.cpu().numpy() for name, values in loaded.forward(padded, lengths).items()}
        for name, values in outputs.items():
            if values.shape[1] < max(counts):
                raise RuntimeError(f"{name}: the encoder gave {values.shape[1]} frames where {max(counts)} were due")
        return [{name: values[i, :count] for name, values in outputs.items()} for i, count in enumerate(counts)]
