"""int8 by utterance and channel: what is lost, on random values and on real HuBERT features."""

import math
from pathlib import Path

import numpy as np
import pytest
from encodeonce.store.quantize import quantize, restore, signal_to_noise
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

FLOATS = st.floats(-1e4, 1e4, width=32)


@given(arrays(np.float32, st.tuples(st.integers(1, 20), st.integers(1, 6)), elements=FLOATS))
def test_error_is_at_most_half_a_step_of_the_channel(values):
    codes, affine = quantize(values)
    assert codes.dtype == np.int8
    assert affine.dtype == np.float32
    steps = affine[0]
    rounding = 1e-5 * np.abs(values).max()
    assert (np.abs(restore(codes, affine) - values) <= 0.5001 * steps + rounding + 1e-30).all()


def test_a_constant_channel_is_kept_exactly():
    values = np.full((5, 3), 7.25, np.float32)
    assert np.array_equal(restore(*quantize(values)), values)


def test_signal_to_noise_is_taken_over_the_whole_matrix():
    values = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    kept = values + np.array([[0.0, 0.0], [0.5, 0.0]], np.float32)
    assert signal_to_noise(values, kept) == pytest.approx(10 * math.log10(25 / 0.25))
    assert signal_to_noise(values, values) == math.inf


@pytest.mark.shared
def test_int8_keeps_40_db_and_a_cosine_of_0_9998_on_real_hubert_features(shared: Path):
    matrices = [np.load(path) for path in sorted((shared / "goldens").rglob("*.npy"))]
    features = [m for m in matrices if m.ndim == 2 and m.dtype == np.float32 and m.shape[1] >= 256]
    assert len(features) >= 3
    for values in features:
        kept = restore(*quantize(values))
        cosine = (values * kept).sum(1) / (np.linalg.norm(values, axis=1) * np.linalg.norm(kept, axis=1))
        assert signal_to_noise(values, kept) >= 40
        assert cosine.min() >= 0.9998
