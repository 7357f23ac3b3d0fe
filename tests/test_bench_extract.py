"""benchmarks/extract.py: its operations by formula, what it makes of passes, and its table."""

import subprocess
import sys
import time
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch
import transformers
from checkpoints import BASE
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import flops
from checkpoint import SIZES
from flops import count
from isolated import FailedError, Pass, compare
from peers.extract import Audio, Extractor, Finished, Job, extractors
from peers.extract.ours import left_on_device
from results import Result, summarise
from table import tables

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SAMPLES = 12 * 16_000


@pytest.mark.parametrize(("size", "published"), [("base", 15), ("large", 39)])
def test_operations_are_those_that_are_known(size: str, published: float) -> None:
    fields: dict[str, Any] = SIZES[size]
    found = count(transformers.HubertConfig(**fields).to_dict(), SAMPLES)
    assert found is not None
    assert found.total / 12e9 == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize("size", ["base", "large"])
def test_operations_are_those_that_torch_counts(size: str) -> None:
    changed: dict[str, Any] = {**SIZES[size], "num_hidden_layers": 1}
    config = transformers.HubertConfig(**changed)
    model = transformers.HubertModel._from_config(config, attn_implementation="eager").eval()
    remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")
    model = torch.nn.Module.to(model, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, SAMPLES, device="meta"))
    found = count(config.to_dict(), SAMPLES)
    assert found is not None
    assert found.total == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_other_families_are_not_guessed_at() -> None:
    assert count({"model_type": "whisper"}, SAMPLES) is None


def job(*seconds: float) -> Job:
    utterances = tuple(Audio(f"u{i}", Path("u.flac"), int(16_000 * s)) for i, s in enumerate(seconds))
    return Job("folder", Path("data"), "dev", None, "cpu", 10.0, utterances)


def test_batches_are_no_longer_than_asked_and_hold_every_utterance_once() -> None:
    batches = list(job(1, 9, 2, 3, 30, 4).batches())
    assert [[audio.samples // 16_000 for audio in batch] for batch in batches] == [[30], [9], [4, 3], [2, 1]]


def result(name: str, kind: Literal["bare", "ours", "peer"], *seconds: float, failed: str | None = None) -> Result:
    reports = [{"encoder_seconds": 0.8 * s, "stages": {"encode": 0.75}} if kind == "ours" else {} for s in seconds]
    passes = [
        Pass(s, s, 100.0 * number, None, 1e-3, 0.9999, report)
        for number, (s, report) in enumerate(zip(seconds, reports, strict=True), 1)
    ]
    return Result(name, kind, "float32", failed=failed, passes=passes)


def summarised(device: str = "cpu") -> list[Result]:
    results = [
        result("bare", "bare", 9, 4, 8),
        result("ours", "ours", 9, 2, 2),
        result("ours in memory", "bare", 9, 1, 2),
        result("absent", "peer", failed="not installed: absent"),
    ]
    summarise(results, replace(job(10, 10), device=device), 40e9, {"float32": 40e9})
    return results


def test_ratios_are_taken_within_rounds_after_the_first() -> None:
    _, ours, _, absent = summarised()
    assert (ours.times_real_time, ours.first_times_real_time) == (10, 20 / 9)
    assert ours.encoder_times_real_time == pytest.approx(20 / 1.6)
    assert ours.of_bare == pytest.approx((2 / 4 + 2 / 8) / 2)
    assert ours.of_alone == pytest.approx((2 / 1 + 2 / 2) / 2)
    assert ours.of_peak == pytest.approx(0.5)
    assert ours.gpu_idle_between_batches is None
    assert absent.times_real_time is None


def table(results: list[Result]) -> str:
    found: dict[str, Any] = {
        "machine": {"cores": 2, "processor": "one", "date": "2026-01-02", "python": "3.11", "versions": {"a": "1"}},
        "extraction": {
            "checkpoint": "hubert",
            "device": "cpu",
            "utterances": 2,
            "audio_seconds": 20.0,
            "rounds": 3,
            "gigaflops_an_audio_second": 2.0,
            "matmul_gigaflops_a_second": {"float32": 40.0},
            "results": [asdict(r) for r in results],
        },
    }
    return tables(found)


def test_the_table_has_a_row_for_what_ran_and_a_reason_for_what_did_not() -> None:
    text = table(summarised())
    head, _, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows] == ["| ours in memory", "| **ours**", "| bare"]
    assert (
        "| **ours** | 2.2 | 10.0 (10.0 to 10.0) | 12.5 | 0.375 | 1.500 | 50 % | 1.0e-03 | 0.999900 | 0.1 GB |" in rows
    )
    assert "| bare | 2.2 | 3.3 (2.5 to 5.0) |  | 1.000 |  | 17 % | 1.0e-03 | 0.999900 | 0.1 GB |" in rows
    assert {row.count("|") for row in rows} == {head.count("|")}
    assert "absent failed: not installed: absent." in text
    assert "idle" not in text
    assert "2026-01-02, one, 2 cores" in text


def test_what_a_way_makes_is_held_against_the_reference(tmp_path):
    reference, asked = tmp_path / "reference.npz", job(1, 2)

    def off(*changed: tuple[slice, float]) -> tuple[float, float]:
        stored = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
        for frames, value in changed:
            stored[frames] = value
        return compare(Finished(lambda name: stored), asked, reference)

    assert off() == pytest.approx((0, 1))
    error, cosine = off((np.s_[2:3], 0.0))  # silence where there is none is no agreement
    assert (error > 0.1, cosine) == (True, 0)
    with pytest.raises(FailedError, match="u0 has NaN or infinity among its features"):
        off((np.s_[1:2], np.nan))


def test_without_the_reference_nothing_is_measured(capsys):
    nothing: Any = None
    ways = [Extractor(name, "peer", nothing, (f"no_{name}",)) for name in ("reference", "other")]
    run = import_module("extract").run  # a folder of the checkout is called so, too
    with pytest.raises(SystemExit, match="reference is what the others are held against"):
        run(ways, job(1), 2, {})
    assert "other" not in capsys.readouterr().out


def test_the_first_product_is_not_in_the_time_for_the_peak(monkeypatch):
    sizes = []

    def products(a: torch.Tensor, b: torch.Tensor) -> Any:
        sizes.append(len(a))
        yield lambda: time.sleep(0.2 if len(sizes) == 1 else 0.001)

    monkeypatch.setattr(flops, "_products", products)
    flops.matmul_peak("cpu", "float32", seconds=0.15)
    assert len(sizes) > 2


def test_a_first_pass_alone_is_no_later_pass() -> None:
    results = [result("bare", "bare", 4), result("ours", "ours", 2)]
    summarise(results, job(10, 10), 40e9, {"float32": 40e9})
    assert "| **ours** | 10.0 |  |" in table(results)


def test_on_a_gpu_the_table_says_for_how_long_no_batch_was_there() -> None:
    text = table(summarised("cuda:0"))
    assert "ours: 25.0 % of the time the GPU was idle between batches." in text


class Left(torch.Tensor):
    """A tensor that counts how often one like it was brought to the host."""

    fetched = 0

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        Left.fetched += 1
        return self.as_subclass(torch.Tensor)


def test_the_encoder_alone_on_a_gpu_waits_for_nothing() -> None:
    class Doubling:
        loaded = None

        def frames(self, loaded: None, audio: list[np.ndarray]) -> tuple[list[dict[str, torch.Tensor]], float]:
            return [{"last": torch.from_numpy(2 * x)[:, None].as_subclass(Left)} for x in audio], 0.0

    audio = [np.full(length, length, np.float32) for length in (3, 1, 2)]
    encoder: Any = Doubling()
    features = left_on_device(encoder, [[0, 2], [1]], audio, "last")
    assert Left.fetched == 0
    for i, samples in enumerate(audio):
        np.testing.assert_array_equal(features(i)[:, 0], 2 * samples)
    assert Left.fetched == 3


@pytest.mark.parametrize("name", ["onnxruntime, one by one, float32", "OpenVINO, one by one, float32"])
def test_a_converted_model_takes_every_length(name: str, tmp_path: Path) -> None:
    ways = {way.name: way for way in extractors()}
    if ways[name].missing:
        pytest.skip(f"not installed: {', '.join(ways[name].missing)}")
    transformers.HubertModel(transformers.HubertConfig(**BASE)).save_pretrained(tmp_path / "hubert")
    utterances = []
    for i, samples in enumerate((7_003, 31_999)):
        file = tmp_path / f"u{i}.wav"
        soundfile.write(file, np.random.default_rng(i).normal(0, 0.1, samples), 16_000)
        utterances.append(Audio(f"u{i}", file, samples))
    asked = Job(str(tmp_path / "hubert"), tmp_path, "dev", None, "cpu", 10.0, tuple(utterances))
    due, found = (ways[way].load(asked)(tmp_path) for way in ("transformers in memory, one by one", name))
    for audio in utterances:
        np.testing.assert_allclose(found.stored(audio.id), due.stored(audio.id), atol=1e-4)


@pytest.mark.parametrize("name", ["onnxruntime, one by one, float32", "OpenVINO, one by one, bfloat16"])
def test_what_runs_on_a_cpu_alone_says_so(name: str) -> None:
    way = next(way for way in extractors() if way.name == name)
    if way.missing:
        pytest.skip(f"not installed: {', '.join(way.missing)}")
    with pytest.raises(ValueError, match="not on cuda:0"):
        way.load(replace(job(1), device="cuda:0"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nosplit"], "no split 'nosplit' under "),
        (["dev", "--device", "cuda:99"], "device 'cuda:99': torch sees "),
        (["dev", "--rounds", "0"], "extract.py: error: argument --rounds: '0' is no whole number from 1"),
    ],
)
def test_bad_input_gets_one_line(arguments: list[str], reason: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "dev").mkdir()
    soundfile.write(tmp_path / "dev" / "u.wav", np.zeros(16_000), 16_000)
    command = [sys.executable, str(BENCHMARKS / "extract.py"), str(tmp_path), str(tmp_path), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    said = done.stderr.split("usage:")[-1].strip().splitlines()
    assert said[-1].startswith(reason)
    assert "Traceback" not in done.stderr
