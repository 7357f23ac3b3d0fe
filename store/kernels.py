"""int8 codes of a matrix by channel: the loops over every value, in C (kernels.c) where that was compiled, else in numpy.

Both do the same operations in float32 without fused multiply-add: every machine gets the same codes, scales and offsets, to
the bit (but where a thread flushes denormal numbers, as after torch.set_flush_denormal: there C takes float16's for 0). The C
takes a tenth of the time, and lets go of the GIL once.
"""

import numpy as np

try:
    from encodeonce.store._kernels import quantize as _compiled
except ImportError:  # installed where there was no C compiler
    _compiled = None

COMPILED = _compiled is not None
SUMMED = 32
"""Frames whose squares are summed in float32, by channel, before float64 takes them."""


def quantize(values: np.ndarray, affine: np.ndarray, powers: np.ndarray, codes: np.ndarray) -> bool:
    """int8 codes of `[T, D]` float16 or float32: round((x - offset) / scale), 256 levels between each channel's extremes.

    Args:
        values: C-contiguous, T at least 1.
        affine: `[2, D]` float32, gets scale and offset.
        powers: `[2, D]` float64, gets the sums of x^2 and of (x - restored)^2.
        codes: `[T, D]` int8, C-contiguous, gets the codes.

    Returns:
        Whether all of `affine` is finite; where it is not, `powers` and `codes` mean nothing.
    """
    if _compiled is not None:
        return _compiled(values, values.dtype == np.float16, affine, powers, codes)
    return in_numpy(values, affine, powers, codes)


def in_numpy(values: np.ndarray, affine: np.ndarray, powers: np.ndarray, codes: np.ndarray) -> bool:
    """What `quantize` does where it was not compiled."""
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (extreme.astype(np.float32) for extreme in _extremes(values))
        affine[0] = (high - low) / np.float32(255)
        affine[1] = low + np.float32(128) * affine[0]
    powers[:] = 0
    if not np.isfinite(affine).all():
        return False
    scale, offset = affine
    step = np.where(scale > 0, scale, np.float32(1))
    for begin in range(0, len(values), SUMMED):
        some = values[begin : begin + SUMMED].astype(np.float32)
        level = np.rint((some - offset) / step).clip(-128, 127)
        codes[begin : begin + SUMMED] = level
        lost = some - (level * scale + offset)
        with np.errstate(over="ignore"):
            powers[0] += np.square(some).sum(axis=0)
            powers[1] += np.square(lost).sum(axis=0)
    return True


def _extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest of each channel, NaN where there is one: as integers where numpy is slow with float16.

    The bits are in the order of the numbers where those below the sign are turned around for negative ones; NaN lies beyond infinity.
    """
    if values.dtype != np.float16:
        return values.min(axis=0), values.max(axis=0)
    bits, below = values.view(np.int16), np.int16(0x7FFF)
    turned = bits ^ ((bits >> 15) & below)
    low, high = (extreme ^ ((extreme >> 15) & below) for extreme in (turned.min(axis=0), turned.max(axis=0)))
    return low.view(np.float16), high.view(np.float16)
