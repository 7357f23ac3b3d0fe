"""Values as they are stored: the dtypes, int8 by utterance and channel, and how much of the signal a dtype keeps.

Values are worked on in blocks of frames that stay in a processor's cache, in place: deriving int8 is one pass over the data.
"""

import math
from collections.abc import Iterator

import numpy as np
from encodeonce.store.layout import Output

STORED_DTYPES = ("float16", "float32", "int8", "uint16")
"""int8 is `values = q * scale + offset`; uint16 is for codes and units."""
BLOCK_VALUES = 1 << 16
"""Values that are worked on at a time: 256 KiB of float32, twice."""


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
        _check_finite(values, output)
        raise _too_large(values, output)
    dtype = np.dtype(output.dtype).newbyteorder("<")
    _check_finite(values, output)
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
    raise _too_large(values, output)


def _check_finite(values: np.ndarray, output: Output) -> None:
    if not np.isfinite(values).all():
        raise NotStorableError(f"{output.name}: NaN or infinity among the values")


def _too_large(values: np.ndarray, output: Output) -> NotStorableError:
    way_out = "; keep it as float32 or int8" if output.dtype == "float16" else ""
    return NotStorableError(
        f"{output.name}: values up to {np.abs(values).max():.3g} do not fit {output.dtype}{way_out}"
    )


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
    signal, noise = 0.0, 0.0
    stored = _blocks(kept)
    for (_, block), (_, other) in zip(_blocks(values), stored, strict=True):
        signal += _power(block)
        noise += _power(np.subtract(block, other, out=other))
    return _decibels(signal, noise)


def _quantized(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """What `quantize` gives, and the signal-to-noise ratio in dB; no codes where the affine is not finite."""
    codes = np.empty(values.shape, np.int8)
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = _extremes(values)
        scale = (high - low) / np.float32(255)
        offset = low + np.float32(128) * scale
    affine = np.stack([scale, offset])
    if not np.isfinite(affine).all():
        return codes, affine, -math.inf
    steps = np.where(scale > 0, scale, np.float32(1))
    # Each step of the arithmetic is monotonic: where the extremes stay within the levels, every value does.
    beyond = np.rint((low - offset) / steps).min() < -128 or np.rint((high - offset) / steps).max() > 127
    signal, noise, spare = 0.0, 0.0, _room(values)
    for first, block in _blocks(values):
        levels = np.subtract(block, offset, out=spare[: len(block)])
        np.divide(levels, steps, out=levels)
        np.rint(levels, out=levels)
        if beyond:
            np.clip(levels, -128, 127, out=levels)
        np.copyto(codes[first : first + len(block)], levels, casting="unsafe")
        # What `restore` makes of the codes, without reading them back.
        np.multiply(levels, scale, out=levels)
        np.add(levels, offset, out=levels)
        signal += _power(block)
        noise += _power(np.subtract(block, levels, out=levels))
    return codes, affine, _decibels(signal, noise)


def _extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the greatest value of each channel `[D]` float32; one is NaN or infinite where a value is."""
    if _is_half(values):
        least, most = _half_extremes(values)
        return least.astype(np.float32), most.astype(np.float32)
    low = np.full(values.shape[1], np.inf, np.float32)
    high = -low
    for _, block in _blocks(values):
        np.minimum(low, block.min(axis=0), out=low)
        np.maximum(high, block.max(axis=0), out=high)
    return low, high


def _half_extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_extremes` in float16, found among integers: a half's bits are in its order where those below the sign are turned
    around for negative ones. NaN lies beyond infinity on either side."""
    bits, frames = values.view(np.int16), max(1, 2 * BLOCK_VALUES // values.shape[1])
    low, high = np.full(values.shape[1], 0x7FFF, np.int16), np.full(values.shape[1], -0x8000, np.int16)
    room = np.empty((frames, values.shape[1]), np.int16)
    for first in range(0, len(bits), frames):
        block = bits[first : first + frames]
        order = _turned(block, room[: len(block)])
        np.minimum(low, order.min(axis=0), out=low)
        np.maximum(high, order.max(axis=0), out=high)
    return _turned(low, np.empty_like(low)).view(np.float16), _turned(high, np.empty_like(high)).view(np.float16)


def _turned(bits: np.ndarray, out: np.ndarray) -> np.ndarray:
    np.right_shift(bits, 15, out=out)
    np.bitwise_and(out, np.int16(0x7FFF), out=out)
    return np.bitwise_xor(out, bits, out=out)


def _is_half(values: np.ndarray) -> bool:
    return values.dtype == np.float16 and values.dtype.isnative


def _blocks(values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First frame and values `[t, D]` float32 of each block; the array is written anew for the next one."""
    room = _room(values)
    for first in range(0, len(values), len(room)):
        block = values[first : first + len(room)]
        yield first, _widen(block, room[: len(block)])


def _room(values: np.ndarray) -> np.ndarray:
    return np.empty((max(1, BLOCK_VALUES // max(1, values.shape[1])), values.shape[1]), np.float32)


def _widen(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Values as float32; of float16 in arithmetic that numpy does many at a time (its own cast took 4 ns a value).

    Sign and mantissa of a half move to their places, its exponent counts from 15 instead of 127: exact for every number.
    """
    if not _is_half(values):
        np.copyto(out, values, casting="unsafe")
        return out
    bits = out.view(np.int32)
    np.copyto(bits, values.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, np.int32(-0x70000001), out=bits)  # a sign bit alone, not its copies in the exponent
    return np.multiply(out, np.float32(2.0**112), out=out)


def _power(block: np.ndarray) -> float:
    # Frame by frame: of a longer product BLAS makes threads, which wait for each other.
    return float(np.vecdot(block, block).sum(dtype=np.float64))


def _decibels(signal: float, noise: float) -> float:
    return math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)
