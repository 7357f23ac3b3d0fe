"""Frames `[B, T, D]` in batches of several lengths: padding blanked, time made shorter."""

from encodeonce.train.adapters.base import valid
from torch import Tensor
from torch.nn import functional as F


def blank(frames: Tensor, lengths: Tensor) -> Tensor:
    """Frames `[B, T, D]` with zeros after each utterance's `lengths` `[B]`, whatever stood there."""
    return frames.masked_fill(~valid(lengths, frames.shape[1])[..., None], 0)


def shorter(lengths: Tensor, by: int) -> Tensor:
    """What is left of lengths `[B]` where `by` frames become one, and what remains at the end one more."""
    return (lengths + by - 1) // by


def concatenate(frames: Tensor, lengths: Tensor, by: int) -> Tensor:
    """`by` frames after each other as one: `[B, T, D]` to `[B, ceil(T / by), by * D]`; zeros fill up the last one."""
    filled = F.pad(blank(frames, lengths), (0, 0, 0, -frames.shape[1] % by))
    return filled.unflatten(1, (-1, by)).flatten(2)
