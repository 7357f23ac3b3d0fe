"""What an evaluation tells of work that takes long: how much is done, how fast, how long it will take, and the way out."""

from collections.abc import Sequence

import pytest
from encodeonce.evaluate import progress
from encodeonce.evaluate.progress import EvaluationProgress

WAY_OUT = "--leave-out bertscore leaves it out"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def told(
    capsys: pytest.CaptureFixture[str],
    clock: list[float],
    steps: Sequence[tuple[float, int]],
    total: int,
    quiet: bool = False,
):
    with EvaluationProgress(quiet) as shown:
        counting = shown.counting("BERTScore", "pairs", WAY_OUT)
        for seconds, done in steps:
            clock[0] += seconds
            counting.advance(done, total)
    return capsys.readouterr().err.splitlines()


def test_long_work_is_told_once_with_its_time_and_the_way_out(capsys, clock):
    steps = [(0, 32), (1, 64), (5, 332), (11, 832), (1, 833), (99, 9_000), (1, 10_000)]
    assert told(capsys, clock, steps, 10_000) == [
        f"BERTScore: about 3 min 13 s for 9,668 pairs; {WAY_OUT}",
        "BERTScore: 832 of 10,000 pairs, 47.1 a second, 195 s left",
        "BERTScore: 9,000 of 10,000 pairs, 76.6 a second, 13 s left",
    ]


def test_short_work_and_quiet_are_told_nothing(capsys, clock):
    assert told(capsys, clock, [(0, 0), (6, 50), (6, 99), (1, 100)], 100) == []
    assert told(capsys, clock, [(0, 0), (6, 50), (30, 99)], 10_000, quiet=True) == []


def test_a_second_piece_of_work_begins_anew(capsys, clock):
    with EvaluationProgress() as shown:
        counting = shown.counting("BERTScore", "pairs", WAY_OUT)
        for _ in range(2):
            counting.advance(0, 1000)
            clock[0] += 6
            counting.advance(12, 1000)
            counting.advance(1000, 1000)
        shown.advance(0, 100)
        clock[0] += 20
        shown.advance(10, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"BERTScore: about 8 min 14 s for 988 pairs; {WAY_OUT}"] * 2 + [
        "Decoding: 10 of 100 utterances, 0.5 a second, 180 s left"
    ]
