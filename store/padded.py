"""Padded batches in memory: where each utterance's frames lie in one."""

from typing import NamedTuple

import numpy as np


class Padded(NamedTuple):
    """A batch: values `[B, T, D]`, zero after each utterance's frames, and lengths `[B]` int32 in frames."""

    values: np.ndarray
    lengths: np.ndarray


def utterance_bytes(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The bytes of each utterance's frames in a contiguous padded batch `[B, T, D]`."""
    rows = values.reshape(-1).view(np.uint8)
    row_bytes = values.shape[2] * values.itemsize
    starts = np.arange(len(lengths)) * (values.shape[1] * row_bytes)
    ends = starts + lengths.astype(np.int64) * row_bytes
    return [rows[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def room_for(out: np.ndarray, shape: tuple[int, int, int], dtype: np.dtype) -> np.ndarray:
    """The start of a caller's array as a batch."""
    size = shape[0] * shape[1] * shape[2]
    if out.dtype != dtype or not out.flags.c_contiguous or out.size < size:
        raise ValueError(
            f"out must be contiguous {dtype} with room for {size} values {shape}; it is {out.dtype} {out.shape}"
        )
    return out.reshape(-1)[:size].reshape(shape)
