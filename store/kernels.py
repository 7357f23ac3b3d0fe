"""Loops over every value, compiled: what numpy would do in a dozen passes over memory is two here.

Compiled once (some seconds), then from a cache on disk where one can be written. They let go of the GIL, and do in float32
what numpy's operations would, in the same order: no fused multiply-add, and sums by channel, so that every machine gets the
same bits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

SUMMED = 32
"""Frames whose squares are summed in float32, by channel, before float64 takes them."""


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function compiled when it is called first; kept on disk, where a folder for that can be written."""
    try:
        return njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package's folder nor the user's cache folder: numba cannot place the cache
        return njit(nogil=True, error_model="numpy")(function)


@compiled
def extremes(bits: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """The least and the greatest of each channel of `[T, D]` floats, all given as the integers of their bits.

    These are in the order of the numbers where the bits below the sign are turned around for negative ones; NaN lies
    beyond infinity on either side. `low` and `high` `[D]` get the bits.
    """
    below = low.dtype.type(np.iinfo(low.dtype).max)
    sign = 8 * low.itemsize - 1
    low[:] = below
    high[:] = -below - 1
    for t in range(bits.shape[0]):
        for d in range(bits.shape[1]):
            turned = low.dtype.type(bits[t, d] ^ ((bits[t, d] >> sign) & below))
            if turned < low[d]:
                low[d] = turned
            if turned > high[d]:
                high[d] = turned
    for d in range(bits.shape[1]):
        low[d] ^= (low[d] >> sign) & below
        high[d] ^= (high[d] >> sign) & below


@njit(nogil=True, error_model="numpy", inline="always")
def widen(halves: np.ndarray, out: np.ndarray) -> None:
    """float16 numbers `[D]`, given as uint16, as float32. Exact: sign and mantissa move to their places, the exponent
    counts from 15 instead of 127."""
    bits = out.view(np.uint32)
    for d in range(len(halves)):
        half = np.uint32(halves[d])
        bits[d] = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | ((half & np.uint32(0x8000)) << np.uint32(16))
    for d in range(len(halves)):
        out[d] *= np.float32(2.0**112)


@compiled
def quantize(
    values: np.ndarray, half: bool, scale: np.ndarray, offset: np.ndarray, codes: np.ndarray
) -> tuple[float, float]:
    """int8 codes `[T, D]` of `[T, D]` float32, or float16 given as uint16 (`half`), by channel: round((x - offset) / scale).

    Returns:
        The sums of x^2 and of (x - restored)^2 over the whole matrix.
    """
    width = values.shape[1]
    row, level = np.empty(width, np.float32), np.empty(width, np.float32)
    signal, noise = np.zeros(width, np.float32), np.zeros(width, np.float32)
    all_signal, all_noise = 0.0, 0.0
    steps = np.where(scale > 0, scale, np.float32(1))
    for t in range(values.shape[0]):
        if half:
            widen(values[t], row)
        else:
            for d in range(width):
                row[d] = values[t, d]
        for d in range(width):
            rounded = np.rint((row[d] - offset[d]) / steps[d])
            rounded = rounded if rounded > np.float32(-128) else np.float32(-128)
            level[d] = rounded if rounded < np.float32(127) else np.float32(127)
            codes[t, d] = np.int8(level[d])
        for d in range(width):
            lost = row[d] - (level[d] * scale[d] + offset[d])
            signal[d] += row[d] * row[d]
            noise[d] += lost * lost
        if t % SUMMED == SUMMED - 1 or t == values.shape[0] - 1:
            for d in range(width):
                all_signal += signal[d]
                all_noise += noise[d]
            signal[:] = 0
            noise[:] = 0
    return all_signal, all_noise
