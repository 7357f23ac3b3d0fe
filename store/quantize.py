"""int8 by utterance and channel: `values = q * scale + offset`, and how much of the signal any dtype keeps."""

import math

import numpy as np


def quantize(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 values `[T, D]` and their affine `[2, D]` float32 (scale, offset) for float values `[T, D]`.

    Each channel of the utterance uses all 256 levels between its least and greatest value. `restore` undoes it:
    the error is at most half a scale.
    """
    values = np.asarray(values, dtype=np.float32)
    low, high = values.min(axis=0), values.max(axis=0)
    scale = (high - low) / np.float32(255)
    offset = low + np.float32(128) * scale
    steps = np.where(scale > 0, scale, np.float32(1))
    codes = np.clip(np.rint((values - offset) / steps), -128, 127).astype(np.int8)
    return codes, np.stack([scale, offset])


def restore(codes: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """float32 values `[T, D]` of int8 codes `[T, D]` and their affine `[2, D]`."""
    return codes * affine[0] + affine[1]


def signal_to_noise(values: np.ndarray, kept: np.ndarray) -> float:
    """10 log10(sum x^2 / sum (x - kept)^2) in dB over a whole matrix; infinity where nothing is lost."""
    difference = (values - kept).ravel()
    noise = float(np.dot(difference, difference))
    signal = float(np.dot(values.ravel(), values.ravel()))
    return math.inf if noise == 0 else -math.inf if signal == 0 else 10 * math.log10(signal / noise)
