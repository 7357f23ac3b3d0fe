"""benchmarks/extract.py: its operations by formula, what it makes of passes, and its table."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import transformers
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from checkpoint import SIZES
from flops import count
from isolated import Pass
from peers.extract import Audio, Job
from results import Result, summarise
from table import tables

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
    passes = [Pass(s, s, 100.0, None, 1e-3, 0.9999, {}) for s in seconds]
    return Result(name, kind, "float32", failed=failed, passes=passes)


def summarised() -> list[Result]:
    results = [
        result("bare", "bare", 9, 4, 8),
        result("ours", "ours", 9, 2, 2),
        result("ours in memory", "bare", 9, 1, 2),
        result("absent", "peer", failed="not installed: absent"),
    ]
    summarise(results, job(10, 10), 40e9, {"float32": 40e9})
    return results


def test_ratios_are_taken_within_rounds_after_the_first() -> None:
    _, ours, _, absent = summarised()
    assert (ours.times_real_time, ours.first_times_real_time) == (10, 20 / 9)
    assert ours.of_bare == pytest.approx((2 / 4 + 2 / 8) / 2)
    assert ours.of_alone == pytest.approx((2 / 1 + 2 / 2) / 2)
    assert ours.of_peak == pytest.approx(0.5)
    assert absent.times_real_time is None


def test_the_table_has_a_row_for_what_ran_and_a_reason_for_what_did_not() -> None:
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
            "results": [asdict(r) for r in summarised()],
        },
    }
    text = tables(found)
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in rows] == ["| ours in memory", "| **ours**", "| bare"]
    assert "| **ours** | 10.0 | 2.2 | 0.375 | 50 % | 1.0e-03 | 0.999900 | 0.1 GB |" in rows
    assert "absent failed: not installed: absent." in text
    assert "2026-01-02, one, 2 cores" in text
