"""Where the time goes, as a run tells it."""

import pytest
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
    assert live.note() == "limited by decoding, padding 10.0 %"
