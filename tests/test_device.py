"""What is brought into its stored form on the device is, bit for bit, what the store's own `keep` makes of it."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from encodeonce.extract.batching import Cutting
from encodeonce.extract.device import Device, InFlight
from encodeonce.extract.encode import BatchEncoder
from encodeonce.extract.encoders.base import LoadedEncoder
from encodeonce.extract.run import Run
from encodeonce.extract.stages import Work
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
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6, 1e20, 3e38])
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
        for found, value in zip(refused[:2], expected[:2], strict=True):
            np.testing.assert_array_equal(found, value)


def test_int8_takes_numbers_whose_squares_float32_cannot_hold():
    assert not isinstance(
        kept_or_refused(np.array([[1e20], [-1e20]], np.float32), Output("x", 1, "int8", "x")), Exception
    )


def test_codes_go_through_as_they_are():
    output = Output("codes", 2, "uint16", "codes", codebook_sizes=(9, 9))
    utterances = [np.array([[1, 8], [0, 3]]), np.array([[5, 5]])]
    for found, values in zip(kept_on("cpu", utterances, output), utterances, strict=True):
        np.testing.assert_array_equal(found[0], values)


def test_an_utterance_with_a_code_that_is_none_is_refused_as_not_finite():
    output = Output("units", 1, "uint16", "units", codebook_sizes=(9,))
    good, refused = kept_on("cpu", [np.array([[1], [8]]), np.array([[2], [-1]])], output)
    assert good[0].tolist() == [[1], [8]]
    assert str(refused) == "units: NaN or infinity among the values"


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_padding_is_zero_and_audio_stays(lengths):
    arrays = [np.arange(1, n + 1, dtype=np.float32) for n in lengths]
    for row, x in zip(Device("cpu").pad(arrays).numpy(), arrays, strict=True):
        np.testing.assert_array_equal(row, np.pad(x, (0, max(lengths) - len(x))))


class Doubling(LoadedEncoder):
    """Frames of one sample; in 16 bits numbers from 8 are too great. Computes in the host's memory, whatever the device."""

    on_device = False

    def __init__(self, most: float = np.inf) -> None:
        self.most = most

    def forward(self, audio: torch.Tensor, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        return {"x": torch.where(audio < self.most, 2 * audio, torch.inf)[..., None]}


def doubling(device: str) -> BatchEncoder:
    encoder: Any = SimpleNamespace(
        sample_rate=1,
        samples_per_frame=1,
        receptive_field=1,
        whole=True,
        mixes_lengths=True,
        parallel=True,
        frames=lambda n: n,
    )
    return BatchEncoder(encoder, Doubling(8), Cutting(60, 5), "float16", Doubling, device)


@pytest.mark.parametrize(("device", "in_flight"), [("cpu", True), ("meta", False)])
def test_a_device_works_by_itself_where_the_frames_are_on_it(device, in_flight, monkeypatch):
    """What overflows comes from float32 either way."""
    monkeypatch.setattr(Device, "by_itself", True)
    encoder, output = doubling(device), Output("x", 1, "float32", "x")
    pending = encoder.begin([np.array([1, 2], np.float32), np.array([9], np.float32)], [output])
    assert pending.in_flight is in_flight
    kept: list[Any] = pending.stored()
    assert [each["x"][0].ravel().tolist() for each in kept] == [[2, 4], [18]]
    assert pending.seconds() >= 0
    assert encoder.take_again() == (1 if in_flight else 2)


@pytest.mark.parametrize(("device", "encoders", "threads"), [("cuda:1", 1, 1), ("cpu", 6, 1)])
def test_the_thread_that_feeds_a_gpu_has_one_core(device, encoders, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    encoder = SimpleNamespace(parallel=True, one_thread=False)
    run: Any = SimpleNamespace(find_device=lambda: device, encoder=encoder, request=SimpleNamespace(workers=4))
    assert Run.work(run) == Work(4, encoders, threads, device)
