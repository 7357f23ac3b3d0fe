"""Where the time goes, as a run tells it."""

import io
import re

import pytest
from encodeonce.extract.progress import Progress
from encodeonce.extract.stages import Live, Stages, Work, limiting


def test_shares_count_the_threads_and_the_busiest_stage_limits():
    stages = Stages(Work(decoders=4, encoders=2, threads=1).stage_threads)
    stages.add("decode", 8.0)
    stages.add("encode", 16.0)
    stages.add("write", 3.0)
    stages.add("wait_for_disk", 99.0)
    shares = stages.shares(10.0)
    assert shares == pytest.approx({"decode": 0.2, "encode": 0.8, "keep": 0.0, "write": 0.15})
    assert limiting(shares) == "encode"
    assert stages.shares(0.0)["encode"] == 0.0


def test_padding_is_the_share_of_what_was_encoded():
    stages = Stages({})
    assert stages.padding == 0.0
    stages.add_batch(90, 100)
    stages.add_batch(60, 100)
    assert stages.padding == pytest.approx(0.25)


def test_what_another_process_counted_is_taken_in_once():
    here, there = Stages({}), Stages({})
    there.add("encode", 2.0)
    there.add_batch(5, 6)
    here.take_in(**there.take())
    here.take_in(**there.take())
    assert (here.seconds["encode"], here.samples, here.padded) == (2.0, 5, 6)


def test_the_live_line_names_what_limited_lately(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("encodeonce.extract.stages.time.perf_counter", lambda: now[0])
    stages = Stages({"decode": 2, "encode": 1})
    live = Live(stages)
    assert live.note() == ""
    stages.add("encode", 4.0)
    assert live.note() == "limited by the encoder"
    stages.add("decode", 9.0)
    assert live.note() == "limited by the encoder"  # not yet: a line that flickers tells nothing
    now[0] = 6.0
    stages.add_batch(9, 10)
    assert live.note() == "limited by decoding, 10.0 % padding"


class Terminal(io.StringIO):
    """A terminal that shows what a line is made of."""

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]


@pytest.mark.parametrize(
    ("columns", "hours", "done", "note", "shown"),
    [
        (80, 5.39, 0.1, "limited by the encoder, 4.2 % padding", "0.10 of 5.39 h, 36x, 8 min 49 s left, {}"),
        (80, 960.9, 0.2, "limited by quantising, 12.3 % padding", "0 of 961 h, 72x, 13 h 20 min left, {}"),
        (80, 960.9, 500, "limited by the encoder, 12.3 % padding", "500 of 961 h, 180000x, 9 s left, {}"),
        (80, 5.39, 0.1, "4.2 % padding", "Encoding dev-clean 0.10 of 5.39 h, 36x, 8 min 49 s left, {}"),
        (130, 5.39, 0.1, "limited by the encoder, 4.2 % padding", "Encoding dev-clean ━ 0.10 of 5.39 h, 36x, 8 min 49 s left, {}"),
    ],
)  # fmt: skip
def test_the_live_line_shows_all_that_counts(monkeypatch, columns, hours, done, note, shown):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    now = [0.0]
    monkeypatch.setattr("encodeonce.extract.progress.time.monotonic", lambda: now[0])
    terminal = Terminal()
    progress = Progress(stream=terminal)
    with progress.task("Encoding dev-clean", 3600 * hours):
        progress.advance(1e-9)
        now[0] = 10.0
        progress.advance(3600 * done, note)
    lines = terminal.lines()
    assert all(len(line) <= columns for line in lines)
    assert re.sub("[━╸╺]{10,}", "━", lines[-1]) == shown.format(note)
