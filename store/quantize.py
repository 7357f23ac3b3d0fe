"""Values as they are stored: the dtypes, int8 by utterance and channel, and how much of the signal a dtype keeps."""

import math

import numpy as np
from encodeonce.store.layout import Output

STORED_DTYPES = ("float16", "float32", "int8", "uint16")
"""int8 is `values = q * scale + offset`; uint16 is for codes and units."""


class NotStorableError(Exception):
    """Features that the wanted dtype cannot hold, or that are not finite."""


def keep(values: np.ndarray, output: Output) -> tuple[np.ndarray, np.ndarray | None, float | None]:
    """Features `[T, D]` as an output stores them: values, the affine of int8, and the signal-to-noise ratio in dB.

    uint16 holds whole numbers exactly or not at all: there the ratio is None.

    Raises:
        NotStorableError: NaN or infinity, or outside the range of the dtype.
    """
    if output.dtype == "int8":
        codes, affine, ratio = _quantized(values)
        if np.isfinite(affine).all():
            return codes, affine, ratio
        raise refusal(output, _greatest(values))
    dtype = np.dtype(output.dtype).newbyteorder("<")
    if not np.isfinite(values).all():
        raise refusal(output, _greatest(values))
    if output.dtype == "uint16":
        with np.errstate(invalid="ignore"):
            kept = values.astype(dtype)
        if not (wrong := kept != values).any():
            return kept, None, None
        raise NotStorableError(f"{output.name}: {values[wrong][0]} is no whole number from 0 to 65535, as uint16 holds")
    with np.errstate(over="ignore"):
        kept = values.astype(dtype)
    if kept.dtype == values.dtype:
        return kept, None, math.inf
    if np.isfinite(kept).all():
        return kept, None, signal_to_noise(values, kept)
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
    codes, affine, _ = _quantized(values)
    return codes, affine


def restore(codes: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """float32 values `[T, D]` of int8 codes `[T, D]` and their affine `[2, D]`."""
    return codes * affine[0] + affine[1]


def signal_to_noise(values: np.ndarray, kept: np.ndarray) -> float:
    """10 log10(sum x^2 / sum (x - kept)^2) in dB over a whole matrix; infinity where nothing is lost."""
    values = np.asarray(values, np.float32)
    difference = (values - kept).ravel()
    return decibels(float(np.dot(values.ravel(), values.ravel())), float(np.dot(difference, difference)))


def _quantized(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """What `quantize` gives, and the signal-to-noise ratio in dB; no codes where the affine is not finite."""
    from encodeonce.store import kernels  # compiled code, which readers do without

    half = values.dtype == np.float16
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(values, np.float16 if half else np.float32)
    bits = np.empty((2, values.shape[1]), np.int16 if half else np.int32)
    kernels.extremes(values.view(bits.dtype), bits[0], bits[1])
    low, high = bits.view(values.dtype).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (high - low) / np.float32(255)
        offset = low + np.float32(128) * scale
    affine, codes = np.stack([scale, offset]), np.empty(values.shape, np.int8)
    if not np.isfinite(affine).all():
        return codes, affine, -math.inf
    signal, noise = kernels.quantize(values.view(np.uint16) if half else values, half, scale, offset, codes)
    return codes, affine, decibels(signal, noise)


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise): infinity where nothing is lost, minus infinity where nothing was there."""
    return math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)
