"""int8 by utterance and channel: what is lost, on random values and on real HuBERT features."""

import math
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from encodeonce.store import kernels
from encodeonce.store.layout import Output
from encodeonce.store.quantize import NotStorableError, keep, quantize, restore, signal_to_noise
from hypothesis import given, settings
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


def plainly(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The formula of docs/format.md on a whole matrix at once."""
    values = values.astype(np.float32)
    low, high = values.min(axis=0), values.max(axis=0)
    scale = (high - low) / np.float32(255)
    offset = low + np.float32(128) * scale
    codes = np.clip(np.rint((values - offset) / np.where(scale > 0, scale, np.float32(1))), -128, 127)
    return codes.astype(np.int8), np.stack([scale, offset])


HAS_COMPILER = shutil.which("cc") and Path(sysconfig.get_path("include"), "Python.h").exists()


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here, or no headers of Python")
def test_the_loops_are_compiled_where_they_can_be():
    assert kernels.COMPILED


@settings(deadline=None)
@given(
    st.booleans(),
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.integers(1, 300),
    st.sampled_from([1, 3, 257, 1024]),
    st.integers(0, 2**32 - 1),
)
def test_the_loops_give_what_numpy_gives_on_whole_matrices(in_c, dtype, frames, width, seed):
    generator = np.random.default_rng(seed)
    values = (generator.standard_normal((frames, width)) * generator.choice([1e-6, 1, 50], width)).astype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        if not in_c:
            patch.setattr(kernels, "_compiled", None)
        codes, affine, ratio = keep(values, Output("x", width, "int8", "x"))
    wanted_codes, wanted_affine = plainly(values)
    assert np.array_equal(codes, wanted_codes)
    assert affine is not None
    assert np.array_equal(affine, wanted_affine)
    difference = values.astype(np.float64) - (wanted_codes * wanted_affine[0] + wanted_affine[1])
    power = (values.astype(np.float64) ** 2).sum()
    if ratio is not None and math.isfinite(ratio) and ratio < 100:
        assert ratio == pytest.approx(10 * math.log10(power / (difference**2).sum()), abs=1e-3)


def quantized_by(loops, values: np.ndarray) -> tuple[bool, np.ndarray, np.ndarray, np.ndarray]:
    affine, powers = np.empty((2, values.shape[1]), np.float32), np.empty((2, values.shape[1]))
    codes = np.empty(values.shape, np.int8)
    return loops(values, affine, powers, codes), affine, powers, codes


@pytest.mark.skipif(not kernels.COMPILED, reason="not compiled here: numpy does the work")
@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([np.uint16, np.uint32]).flatmap(
        lambda bits: arrays(bits, st.tuples(st.integers(1, 70), st.sampled_from([1, 2, 300])))
    )
)
def test_c_and_numpy_agree_to_the_bit_whatever_the_bits(bits):
    values = bits.view({2: np.float16, 4: np.float32}[bits.itemsize])
    (finite, affine, powers, codes), (plain_finite, plain_affine, plain_powers, plain_codes) = (
        quantized_by(loops, values) for loops in (kernels.quantize, kernels.in_numpy)
    )
    assert finite == plain_finite
    if finite:
        assert np.array_equal(affine.view(np.uint32), plain_affine.view(np.uint32))
        assert np.array_equal(codes, plain_codes)
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(powers, plain_powers, rtol=1e-5)


@pytest.mark.skipif(not kernels.COMPILED, reason="not compiled here: numpy does the work")
def test_the_compiled_loops_write_nowhere_else():
    values, affine, powers = np.ones((4, 8), np.float16), np.empty((2, 8), np.float32), np.empty((2, 8))
    for wrong in (np.empty((5, 8), np.int8), np.empty((3, 8), np.int8), np.empty((4, 7), np.int8)):
        with pytest.raises(ValueError, match="different shapes"):
            kernels.quantize(values, affine, powers, wrong)
    with pytest.raises(ValueError, match="different shapes"):
        kernels.quantize(values, affine, powers[:1], np.empty((4, 8), np.int8))
    with pytest.raises(TypeError, match="read-write"):
        kernels.quantize(values, affine, powers, np.broadcast_to(np.int8(0), (4, 8)))


def test_every_float16_is_taken_for_what_it_is():
    patterns = np.arange(65536, dtype=np.uint32).astype(np.uint16).view(np.float16)
    numbers = patterns[np.isfinite(patterns)][:, None]
    assert signal_to_noise(numbers, numbers.astype(np.float32)) == math.inf
    _, affine = quantize(np.ascontiguousarray(numbers.T))  # one frame: every number is its own channel's offset
    assert np.array_equal(affine[1], numbers[:, 0].astype(np.float32))
    assert not affine[0].any()
    for wrong in patterns[~np.isfinite(patterns)][::97]:
        with pytest.raises(NotStorableError, match="NaN or infinity"):
            keep(np.array([[1.0], [wrong]], np.float16), Output("x", 1, "int8", "x"))


def test_what_is_beyond_float32_is_refused_and_nothing_is_warned_of(recwarn: pytest.WarningsRecorder):
    with pytest.raises(NotStorableError, match=r"values up to 1e\+39 do not fit int8"):
        keep(np.full((2, 3), 1e39), Output("x", 3, "int8", "x"))
    assert not recwarn.list


@pytest.mark.shared
def test_int8_keeps_42_db_and_a_cosine_of_0_9998_on_real_hubert_features(shared: Path):
    matrices = [np.load(path) for path in sorted((shared / "goldens").rglob("*.npy"))]
    features = [m for m in matrices if m.ndim == 2 and m.dtype == np.float32 and m.shape[1] >= 256]
    assert len(features) >= 3
    for values in features:
        kept = restore(*quantize(values))
        cosine = (values * kept).sum(1) / (np.linalg.norm(values, axis=1) * np.linalg.norm(kept, axis=1))
        assert signal_to_noise(values, kept) >= 42
        assert cosine.mean() >= 0.9999
        assert cosine.min() >= 0.9998
