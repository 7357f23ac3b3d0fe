"""The check before a run refuses what is broken, and --precision auto picks what is as good as float32."""

import dataclasses
import math
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from checkpoints import FAMILIES, Checkpoints
from commands import RATE, extract, speech, write_corpus
from encodeonce.extract import selfcheck
from encodeonce.extract.batching import Cutting
from encodeonce.extract.cache import FileCache
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.device import Device
from encodeonce.extract.encode import BatchEncoder
from encodeonce.extract.encoders.base import PRECISIONS, EncoderError, LoadedEncoder
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.extract.sample import sample_of
from encodeonce.store.layout import feature_sets

LENGTHS = [0.4, 1.3, 0.7, 2.0, 0.55, 1.0]
WHOLE_SAMPLE = 100 * RATE


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that float16 cannot hold: what one layer adds, before the norm that follows, goes beyond 65,504."""
    folder = tmp_path_factory.mktemp("overflowing")
    model = FAMILIES["hubert-base"].model()
    with torch.no_grad():
        model.encoder.layers[1].feed_forward.output_dense.weight.mul_(1e6)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "data" / "dev", LENGTHS)
    return tmp_path / "data"


@pytest.fixture
def on_gpu_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's processor, under the rules for a GPU, and as fast as one."""
    speeds = {"float32": 10.0, "float16": 20.0, "bfloat16": 20.9}
    monkeypatch.setattr(selfcheck, "times_real_time", lambda batch, *about: speeds[batch.precision])
    monkeypatch.setattr(selfcheck, "chooses_precision", lambda device: True)
    monkeypatch.setattr(selfcheck, "checks_itself", lambda device, precision: True)


def loader(folder: Path, tmp_path: Path) -> Callable[[str], BatchEncoder]:
    encoder = find_encoder(str(folder), FileCache(tmp_path / "cache"))
    outputs = encoder.outputs("last", "float32")

    def load(precision: str) -> BatchEncoder:
        again = lambda: encoder.load("cpu", "float32", outputs)  # noqa: E731
        return BatchEncoder(encoder, encoder.load("cpu", precision, outputs), Cutting(60, 5), precision, again)

    return load


def noise_of(*seconds: float) -> list[np.ndarray]:
    return [speech(length, seed) for seed, length in enumerate(seconds)]


class Wrong(LoadedEncoder):
    """An encoder with a fault."""

    def __init__(self, loaded: LoadedEncoder, fault: Callable[[torch.Tensor, Sequence[int]], torch.Tensor]) -> None:
        self.loaded, self.fault = loaded, fault

    def forward(self, audio: torch.Tensor, lengths: Sequence[int]) -> dict[str, torch.Tensor]:
        return {
            what: self.fault(values.clone(), lengths) for what, values in self.loaded.forward(audio, lengths).items()
        }


def padding_leaks(values: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """The second utterance of a batch is off by 0.1 %, as from a mask that is wrong."""
    values[1:2] *= 1.001
    return values


def one_bad_frame(values: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    values[-1, 0] = values[-1, 0].roll(1)
    return values


def nan(values: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    values[0, 0, 0] = math.nan
    return values


@pytest.mark.parametrize("name", ["hubert-base", "wav2vec2-large", "moonshine-encoder", "whisper-encoder"])
def test_float32_in_a_mixed_batch_passes_and_the_numbers_are_those_of_transformers(name, checkpoints, tmp_path):
    float32, half = (loader(checkpoints.folder(name), tmp_path)(p) for p in ("float32", "bfloat16"))
    sample = noise_of(*LENGTHS)
    found = selfcheck.check(float32, float32.loaded, sample, WHOLE_SAMPLE)
    assert (found.utterances, found.keeps(selfcheck.EXACT)) == (6, True)

    (rounded,) = selfcheck.check(half, float32.loaded, sample, WHOLE_SAMPLE).outputs.values()
    assert rounded.keeps(selfcheck.SOUND)
    least, greatest = 1.0, 0.0
    for frames, x in zip(half.encode(sample), sample, strict=True):
        (values,), exact = frames.values(), checkpoints.reference(name, x)[-1]
        cosine = torch.cosine_similarity(torch.from_numpy(values).double(), torch.from_numpy(exact).double(), dim=1)
        least = min(least, float(cosine.min()))
        greatest = max(greatest, float(np.linalg.norm(values - exact) / np.linalg.norm(exact)))
    assert rounded.cosine == pytest.approx(least, abs=1e-6)
    assert rounded.error == pytest.approx(greatest, rel=0.01)


@pytest.mark.parametrize("fault", [padding_leaks, one_bad_frame, nan])
def test_a_wrong_batch_is_refused(fault, checkpoints, tmp_path):
    right = loader(checkpoints.folder("hubert-base"), tmp_path)("float32")
    wrong = dataclasses.replace(right, loaded=Wrong(right.loaded, fault))
    sample = noise_of(*LENGTHS)
    found = selfcheck.check(wrong, right.loaded, sample, WHOLE_SAMPLE)
    with pytest.raises(EncoderError, match=r"small in float32 on cuda fails its check .* on 6 utterances"):
        selfcheck.require(found, "small", "cuda")
    selfcheck.require(selfcheck.check(right, right.loaded, sample, WHOLE_SAMPLE), "small", "cuda")


def test_the_sample_goes_in_the_batches_of_the_run(checkpoints, tmp_path):
    """A fault that only a batch of several has is none for a run of one utterance at a time."""
    right = loader(checkpoints.folder("hubert-base"), tmp_path)("float32")
    wrong = dataclasses.replace(right, loaded=Wrong(right.loaded, padding_leaks))
    assert selfcheck.check(wrong, right.loaded, noise_of(*LENGTHS), 0).keeps(selfcheck.EXACT)


def test_sixteen_bits_are_refused_where_they_are_broken_and_not_where_they_round(checkpoints, overflowing, tmp_path):
    load = loader(overflowing, tmp_path)
    found = selfcheck.check(load("float16"), load("float32").loaded, noise_of(0.5, 1.0), WHOLE_SAMPLE)
    with pytest.raises(EncoderError, match=r"NaN or infinity .*--precision float32"):
        selfcheck.require(found, "overflowing", "cpu")
    load = loader(checkpoints.folder("hubert-base"), tmp_path)
    half, exact = load("bfloat16"), load("float32").loaded
    selfcheck.require(selfcheck.check(half, exact, noise_of(0.5, 1.0), WHOLE_SAMPLE), "small", "cpu")
    off = dataclasses.replace(half, loaded=Wrong(half.loaded, one_bad_frame))
    with pytest.raises(EncoderError, match="least cosine"):
        selfcheck.require(selfcheck.check(off, exact, noise_of(0.5, 1.0), WHOLE_SAMPLE), "small", "cpu")


def test_codes_are_judged_by_how_many_are_equal():
    codes = np.arange(1000).reshape(500, 2)
    other = codes.copy()
    other[:50, 0] += 1
    found = selfcheck.agreement([other], [codes], "codes[0-1]")
    assert (found.equal, found.keeps(selfcheck.SOUND), found.keeps(selfcheck.EXACT)) == (0.95, True, False)
    frames = np.random.default_rng(0).standard_normal((500, 4)).astype(np.float32)
    moved = frames.copy()
    moved[:3] += 0.01
    assert selfcheck.agreement([moved], [frames], "latents[0-7]").equal == 497 / 500
    # units of frames that are not finite are -1
    units = codes.copy()
    units[7] = -1
    assert not selfcheck.agreement([units], [codes], "units").keeps(selfcheck.SOUND)


def test_what_float32_cannot_compute_either_is_no_fault_of_16_bits(checkpoints, tmp_path):
    right = loader(checkpoints.folder("hubert-base"), tmp_path)("float32")
    broken = Wrong(right.loaded, nan)
    found = selfcheck.check(dataclasses.replace(right, loaded=broken), broken, noise_of(0.5, 1.0), WHOLE_SAMPLE)
    assert found.utterances == 0
    selfcheck.require(found, "small", "cuda")
    assert "float32 itself" in str(found)


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_what_a_device_hands_over_by_itself_has_to_be_what_it_computed(dtype, checkpoints, tmp_path, monkeypatch):
    batch = loader(checkpoints.folder("hubert-base"), tmp_path)("bfloat16")
    outputs, sample = batch.encoder.outputs("last", dtype), noise_of(*LENGTHS)
    waits_for_nothing = Device.download

    def too_early(device: Device, tensors: Sequence[torch.Tensor]) -> Any:
        here, event = waits_for_nothing(device, tensors)
        here[0][-1, 0] += 1
        return here, event

    monkeypatch.setattr(Device, "download", too_early)
    nothing: Any = None  # works by itself here, and nothing is encoded
    selfcheck.check_handover(dataclasses.replace(batch, loaded=nothing), outputs, sample, WHOLE_SAMPLE)
    monkeypatch.setattr(Device, "by_itself", True)
    with pytest.raises(EncoderError, match=r"in bfloat16 on cpu: .* other values than were computed; .*--device cpu"):
        selfcheck.check_handover(batch, outputs, sample, WHOLE_SAMPLE)
    monkeypatch.setattr(Device, "download", waits_for_nothing)
    selfcheck.check_handover(batch, outputs, sample, WHOLE_SAMPLE)
    broken = dataclasses.replace(batch, loaded=Wrong(batch.loaded, nan))  # refused in both forms
    selfcheck.check_handover(broken, outputs, sample, WHOLE_SAMPLE)


def test_a_run_on_a_device_that_works_by_itself_stores_the_same(on_gpu_rules, data, tmp_path, checkpoints, monkeypatch):
    options, folder = ["--precision", "float32", "--batch-seconds", "3"], str(checkpoints.folder("hubert-base"))
    assert extract(data, "dev", tmp_path / "s", *options, encoder=folder).status == 0
    monkeypatch.setattr(Device, "by_itself", True)
    assert extract(data, "dev", tmp_path / "t", *options, encoder=folder).status == 0
    arrays = [
        {p.relative_to(root): p.read_bytes() for p in root.rglob("c/*/*")} for root in (tmp_path / "s", tmp_path / "t")
    ]
    assert arrays[0]
    assert arrays[0] == arrays[1]


def out_of_memory(*about: object) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of it")


def test_full_memory_is_a_line_with_a_way_out(on_gpu_rules, data, tmp_path, checkpoints, monkeypatch):
    right = loader(checkpoints.folder("hubert-base"), tmp_path)("float32")
    full = dataclasses.replace(right, loaded=Wrong(right.loaded, out_of_memory))
    with pytest.raises(EncoderError, match=r"Tried to allocate 2 GiB\.; try a smaller --batch-seconds$"):
        selfcheck.check(full, right.loaded, noise_of(0.5), WHOLE_SAMPLE)
    monkeypatch.setattr(type(right.encoder), "load", out_of_memory)
    done = extract(data, "dev", tmp_path / "s", encoder=str(checkpoints.folder("hubert-base")))
    assert done.status == 2
    assert "cannot be loaded on cpu: CUDA out of memory. Tried to allocate 2 GiB.; free its memory, or take" in done.err
    assert "More of it" not in done.err


def test_silence_is_no_difference():
    silence = [np.zeros((5, 4), np.float32)]
    assert selfcheck.agreement(silence, silence, "fbank") == selfcheck.Agreement()
    assert not selfcheck.agreement([silence[0] + 1], silence, "fbank").keeps(selfcheck.SOUND)


def test_the_sample_is_the_same_whatever_the_order_and_passes_over_what_cannot_be_used(checkpoints, tmp_path):
    encoder = find_encoder(str(checkpoints.folder("hubert-base")), FileCache(tmp_path / "cache"))
    names = write_corpus(tmp_path / "c", [0.5 + 0.01 * i for i in range(30)])
    soundfile.write(tmp_path / "c" / "utt-005.wav", speech(25, 1), RATE)
    soundfile.write(tmp_path / "c" / "utt-010.wav", speech(0.01, 1), RATE)  # gives no frame
    (tmp_path / "c" / "utt-015.wav").write_bytes(b"no audio")
    utterances = [Utterance(name, tmp_path / "c" / f"{name}.wav") for name in names]
    expected = [speech(0.5, 0), speech(25, 1)[: 18 * RATE]] + [speech(0.5 + 0.01 * i, i) for i in (11, 16, 20, 25)]
    for order in (utterances, utterances[::-1]):
        sample = sample_of(order, encoder)
        assert [len(x) for x in sample] == [len(x) for x in expected]
        for x, y in zip(sample, expected, strict=True):
            np.testing.assert_allclose(x, encoder.prepare(y), atol=2e-3)  # 16-bit WAV
    unusable = [Utterance(name, tmp_path / "none" / f"{name}.wav") for name in names]
    noise = sample_of(unusable, encoder)
    assert [len(x) / RATE for x in noise] == [20, 18, 16, 14, 12, 10]


def picked(store: Path) -> str:
    (found,) = feature_sets(store)
    return found.identity["precision"]


def test_auto_picks_float16_where_it_is_as_good_and_takes_over_what_stands(on_gpu_rules, data, tmp_path, checkpoints):
    folder = str(checkpoints.folder("hubert-base"))
    dry = extract(data, "dev", tmp_path / "s", "--dry-run", encoder=folder)
    assert (dry.json["precision"], (tmp_path / "s").exists()) == ("float16", False)
    first = extract(data, "dev", tmp_path / "s", "--batch-seconds", "10", encoder=folder)
    assert (first.status, first.counts(), picked(tmp_path / "s")) == (0, (6, 0, 0, 0), "float16")
    assert "Picked float16" in first.err
    assert "float32: 10 times real time, " in first.err
    write_corpus(data / "dev", [0.8], first=50)
    second = extract(data, "dev", tmp_path / "s", encoder=folder)
    assert (second.counts(), picked(tmp_path / "s")) == ((1, 0, 6, 0), "float16")
    assert "Picked" not in second.err
    assert "in float16 on 6 utterances: least cosine 0.9999" in second.err


def test_the_fastest_of_what_is_as_good_is_picked_by_the_clock(checkpoints, tmp_path):
    right, sample = loader(checkpoints.folder("hubert-base"), tmp_path), noise_of(*LENGTHS)

    def picked_where(**seconds: float) -> tuple[str, list[selfcheck.Trial]]:
        def load(precision: str) -> BatchEncoder:
            def slow(values: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
                time.sleep(seconds[precision])
                return one_bad_frame(values, lengths) if precision == "bfloat16" else values

            batch = right(precision)
            return dataclasses.replace(batch, loaded=Wrong(batch.loaded, slow))

        return selfcheck.choose_precision(PRECISIONS, load, sample, WHOLE_SAMPLE)

    precision, tried = picked_where(float32=0.3, float16=0.0, bfloat16=0.0)
    assert precision == "float16"
    exact, half, coarse = tried
    assert exact.times_real_time == pytest.approx(sum(LENGTHS) / 0.3, rel=0.3)
    assert half.times_real_time > exact.times_real_time
    assert coarse.times_real_time == 0  # it is not as good
    assert re.match(r"float16: \d+ times real time, least cosine 0.9999", str(half))
    assert picked_where(float32=0.0, float16=0.3, bfloat16=0.0)[0] == "float32"


@pytest.mark.parametrize(
    ("float32", "float16", "bfloat16", "picked"),
    [(10, 99, 100, "float16"), (10, 80, 100, "bfloat16"), (98, 99, 100, "float32"), (50, 60, 55, "float16")],
)
def test_where_two_are_as_fast_the_finer_is_picked(
    checkpoints, tmp_path, monkeypatch, float32, float16, bfloat16, picked
):
    speeds = {"float32": float32, "float16": float16, "bfloat16": bfloat16}
    monkeypatch.setattr(selfcheck, "times_real_time", lambda batch, *about: speeds[batch.precision])
    monkeypatch.setattr(selfcheck, "FAITHFUL", dataclasses.replace(selfcheck.FAITHFUL, cosine=0.99))
    load = loader(checkpoints.folder("hubert-base"), tmp_path)
    assert selfcheck.choose_precision(PRECISIONS, load, noise_of(0.5), WHOLE_SAMPLE)[0] == picked


@pytest.mark.parametrize("fast", [True, False])
def test_on_a_cpu_a_new_feature_set_tells_of_bfloat16_where_it_is_fast(fast, data, tmp_path, checkpoints, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    told, folder = "--precision bfloat16 is faster on this processor", str(checkpoints.folder("hubert-base"))
    first = extract(data, "dev", tmp_path / "s", encoder=folder)
    assert (first.status, first.err.count(told)) == (0, int(fast))
    write_corpus(data / "dev", [0.8], first=50)
    assert told not in extract(data, "dev", tmp_path / "s", encoder=folder).err
    assert told not in extract(data, "dev", tmp_path / "t", "--precision", "float32", encoder=folder).err
    assert told not in extract(data, "dev", tmp_path / "f").err
    other = checkpoints.folder("moonshine-encoder")
    assert told not in extract(data, "dev", tmp_path / "m", encoder=str(other)).err


def test_auto_passes_over_what_overflows_and_what_rounds_too_coarsely(
    on_gpu_rules, data, tmp_path, overflowing, monkeypatch
):
    done = extract(data, "dev", tmp_path / "s", "--dtype", "float32", encoder=str(overflowing))
    assert (done.status, picked(tmp_path / "s")) == (0, "float32")
    assert "times real time, no difference; float16: NaN or infinity; bfloat16: least cosine 0.99" in done.err
    assert "in float32 on 6 utterances" in done.err
    monkeypatch.setattr(selfcheck, "FAITHFUL", dataclasses.replace(selfcheck.FAITHFUL, cosine=0.99))
    done = extract(data, "dev", tmp_path / "s2", "--dtype", "float32", encoder=str(overflowing))
    assert (done.status, picked(tmp_path / "s2")) == (0, "bfloat16")


def test_auto_is_float32_on_a_cpu_and_a_single_precision_is_no_choice(data, tmp_path, checkpoints, monkeypatch):
    monkeypatch.setattr(selfcheck, "check", None)  # nothing is compared
    extract(data, "dev", tmp_path / "s", encoder=str(checkpoints.folder("hubert-base")))
    assert picked(tmp_path / "s") == "float32"
    monkeypatch.setattr(selfcheck, "chooses_precision", lambda device: True)
    extract(data, "dev", tmp_path / "f")
    assert picked(tmp_path / "f") == "float32"


def test_a_run_that_fails_its_check_ends_before_anything_is_written(on_gpu_rules, data, tmp_path, overflowing):
    options = ["--precision", "float16", "--dtype", "float32"]
    done = extract(data, "dev", tmp_path / "s", *options, encoder=str(overflowing))
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if "fails its check" in line]
    assert "--precision float32" in line
    assert "Traceback" not in done.err
    assert not list((tmp_path / "s").rglob("feature-set.json"))


def test_the_check_is_made_once_for_several_splits(on_gpu_rules, data, tmp_path, checkpoints):
    write_corpus(data / "test", [0.5, 0.9])
    folder = str(checkpoints.folder("hubert-base"))
    done = extract(data, "dev", tmp_path / "s", "test", "--precision", "float32", encoder=folder)
    assert [report["encoded"] for report in done.json["splits"]] == [6, 2]
    assert done.err.count("Checked ") == 1
