"""Values as they are stored: the dtypes, int8 by utterance and channel, and how much of the signal a dtype keeps."""

import math

import numpy as np
from encodeonce.store import kernels
from encodeonce.store.layout import Output

STORED_DTYPES = ("float16", "float32", "int8", "uint16")
"""int8 is `values = q * scale + offset`; uint16 is for codes and units."""


class NotStorableError(Exception):
    """Features that the wanted dtype cannot hold, or that are not finite."""


def keep(
    values: np.ndarray, output: Output, room: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None, float | None]:
    """Features `[T, D]` as an output stores them: values, the affine of int8, and the signal-to-noise ratio in dB.

    uint16 holds whole numbers exactly or not at all: there the ratio is None. `room` `[T, D]`, of the output's dtype, is
    where the values are put; by default into memory of their own.

    Raises:
        NotStorableError: NaN or infinity, or outside the range of the dtype.
    """
    if room is not None and room.shape != values.shape:
        raise ValueError(f"{output.name}: values {values.shape} where {room.shape} were expected")
    if room is None:
        room = np.empty(values.shape, np.dtype(output.dtype).newbyteorder("<"))
    if output.dtype == "int8":
        affine, ratio = _quantized(values, room)
        if np.isfinite(affine).all():
            return room, affine, ratio
        raise refusal(output, _greatest(values))
    if not np.isfinite(values).all():
        raise refusal(output, _greatest(values))
    with np.errstate(over="ignore", invalid="ignore"):
        np.copyto(room, values, casting="unsafe")
    if output.dtype == "uint16":
        if not (wrong := room != values).any():
            return room, None, None
        raise NotStorableError(f"{output.name}: {values[wrong][0]} is no whole number from 0 to 65535, as uint16 holds")
    if room.dtype == values.dtype:
        return room, None, math.inf
    if np.isfinite(room).all():
        return room, None, signal_to_noise(values, room)
    raise refusal(output, _greatest(values))


def _greatest(values: np.ndarray) -> float:
    return float(np.abs(values).max())


def refusal(output: Output, greatest: float) -> NotStorableError:
    """Why an output cannot hold values of which this is the greatest magnitude; NaN where there is one among them."""
    if not math.isfinite(greatest):
        return NotStorableError(f"{output.name}: NaN or infinity among the values")
    way_out = "; keep it as float32 or int8" if output.dtype == "float16" else ""
    return NotStorableError(f"{output.name}: values up to {greatest:.3g} do not fit {output.dtype}{way_out}")


def quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values `[T, D]` and their affine `[2, D]` float32 (scale, offset) for float values `[T, D]`.

    Each channel of the utterance uses all 256 levels between its least and greatest value. `restore` undoes it:
    the error is at most half a scale. Where the values are not finite, or too far apart for float32, the affine is not finite.
    """
    codes = np.empty(values.shape, np.int8)
    return codes, _quantized(values, codes)[0]


def restore(codes: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """float32 values `[T, D]` of int8 codes `[T, D]` and their affine `[2, D]`."""
    return codes * affine[0] + affine[1]


def signal_to_noise(values: np.ndarray, kept: np.ndarray) -> float:
    """10 log10(sum x^2 / sum (x - kept)^2) in dB over a whole matrix; infinity where nothing is lost."""
    values = np.asarray(values, np.float32)
    difference = (values - kept).ravel()
    return decibels(float(np.dot(values.ravel(), values.ravel())), float(np.dot(difference, difference)))


def _quantized(values: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, float]:
    """Put int8 codes of values where they belong; their affine, and the signal-to-noise ratio in dB.

    Where the affine is not finite, there are no codes.
    """
    with np.errstate(over="ignore"):
        values = np.require(values, np.float16 if values.dtype == np.float16 else np.float32, ["C", "A"])
    affine, powers = np.empty((2, values.shape[1]), np.float32), np.empty((2, values.shape[1]))
    if not kernels.quantize(values, affine, powers, codes):
        return affine, -math.inf
    signal, noise = powers.sum(axis=1)
    return affine, decibels(float(signal), float(noise))


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise): infinity where nothing is lost, minus infinity where nothing was there."""
    return math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)
