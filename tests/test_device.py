"""What is brought into its stored form on the device is, bit for bit, what the store's own `keep` makes of it."""

import numpy as np
import pytest
import torch
from encodeonce.extract.device import Device, InFlight
from encodeonce.store.layout import Output
from encodeonce.store.quantize import NotStorableError, keep
from hypothesis import given, settings
from hypothesis import strategies as st

DTYPES = ("float16", "float32", "int8")
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"))


def kept_on(device: str, utterances: list[np.ndarray], output: Output) -> list:
    there = Device(device)
    frames = [{output.what: torch.from_numpy(x).to(there.device)} for x in utterances]
    flight = InFlight(there, frames, [output], there.mark())
    found = [each[output.name] for each in flight.stored()]
    assert flight.seconds() >= 0
    return found


def kept_or_refused(values: np.ndarray, output: Output):
    try:
        return keep(values, output)
    except NotStorableError as error:
        return error


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None)  # the first of int8 compiles
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 33), st.integers(0, 1000), st.floats(-6, 4))
def test_a_batch_is_kept_as_each_utterance_is(device, dtype, lengths, width, seed, scale):
    generator = np.random.default_rng(seed)
    utterances = [(generator.standard_normal((n, width)) * 10**scale).astype(np.float32) for n in lengths]
    utterances[0][:, 0] = 0.25  # a channel that never changes
    output = Output("x", width, dtype, "x")
    for found, values in zip(kept_on(device, utterances, output), utterances, strict=True):
        expected = kept_or_refused(values, output)
        if isinstance(expected, NotStorableError):
            assert str(found) == str(expected)
            continue
        assert found[0].dtype == expected[0].dtype
        np.testing.assert_array_equal(found[0], expected[0])
        if dtype == "int8":
            np.testing.assert_array_equal(found[1], expected[1])
        assert found[2] == pytest.approx(expected[2], abs=1e-3)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6, 3e38])
def test_what_cannot_be_stored_is_refused_alone_and_alike(device, dtype, bad):
    utterances = [np.ones((4, 3), np.float32), np.ones((5, 3), np.float32)]
    utterances[1][2, 1] = bad
    utterances[1][3, 1] = -bad
    output = Output("x", 3, dtype, "x")
    good, refused = kept_on(device, utterances, output)
    np.testing.assert_array_equal(good[0], keep(utterances[0], output)[0])
    expected = kept_or_refused(utterances[1], output)
    if isinstance(expected, NotStorableError):
        assert str(refused) == str(expected)
    else:
        np.testing.assert_array_equal(refused[0], expected[0])


def test_codes_go_through_as_they_are():
    output = Output("codes", 2, "uint16", "codes", codebook_sizes=(9, 9))
    utterances = [np.array([[1, 8], [0, 3]]), np.array([[5, 5]])]
    for found, values in zip(kept_on("cpu", utterances, output), utterances, strict=True):
        np.testing.assert_array_equal(found[0], values)
