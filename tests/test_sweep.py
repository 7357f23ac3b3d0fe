"""Sweeps: what is done is skipped, what was killed goes on, failures are kept apart, and the table says all of it."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd
import pytest
from commands import Done, run
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.sweep.cli import main
from encodeonce.evaluate.sweep.expand import expand
from encodeonce.evaluate.sweep.grid import parse_grid
from encodeonce.evaluate.sweep.make import Made, make_table
from encodeonce.evaluate.sweep.plan import Programs, flags
from encodeonce.evaluate.sweep.plot import draw
from encodeonce.evaluate.sweep.pools import Here, Pool, pool_of
from encodeonce.evaluate.sweep.table import Cell, Column, Measured, Result, tabulate
from encodeonce.evaluate.sweep.wording import shown
from encodeonce.evaluate.sweep.write import Told, as_object, csv_of, markdown, notes, write_pages
from encodeonce.store.reader import FeatureStore
from encodeonce.train.configure import load_config
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sweep_grid import write_checkpoint
from test_train_cli import store as letters  # noqa: F401 (a fixture)

TRAIN = """
import json, os, re, signal, sys, time
from pathlib import Path
text = Path(sys.argv[1]).read_text()
folder = Path(re.search("^output_dir: (.*)$", text, re.MULTILINE)[1])
folder.mkdir(parents=True, exist_ok=True)
queries = int(re.search("queries: (.*)", text)[1])
with open(folder / "begun", "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
print("loading", file=sys.stderr)
wish = Path(os.environ.get("WISHES", ".")) / str(queries)
wish = wish.read_text() if wish.exists() else ""
if wish == "fail":
    print("error: no luck with", queries, "queries", file=sys.stderr)
    sys.exit(2)
if wish == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if wish == "linger":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    time.sleep(60)
while wish == "orphan" and not Path(os.environ["WISHES"], "go").exists():
    time.sleep(0.05)
print("Trained")
print(json.dumps({"ended": "finished", "parameters": {"trained": {"adapter": 1000 * queries}}, "seconds": 1.0, "wer": 0.5}))
"""
EVALUATE = """
import json, os, re, sys
from pathlib import Path
words = dict(zip(sys.argv[2::2], sys.argv[3::2]))
training, folder = Path(sys.argv[1]), Path(words["--output"])
config = training / "config.yaml"  # of a checkpoint, else of a training's run
text = (config if config.exists() else training.parent / "config.yaml").read_text()
beams = sys.argv[sys.argv.index("--beams") + 1] if "--beams" in sys.argv else "0"
if (Path(os.environ.get("WISHES", ".")) / f"beams{beams}").exists():
    sys.exit("error: too many beams")
if (Path(os.environ.get("WISHES", ".")) / words["--split"]).exists():
    sys.exit("error: no such split")
value = int(re.search("queries: (.*)", text)[1]) / 1000 + int(re.search("^seed: (.*)", text, re.MULTILINE)[1]) / 100
value += int(beams) / 10_000
title = f"some on {words['--split']}"
folder.mkdir(parents=True, exist_ok=True)
(folder / "results.json").write_text(json.dumps({
    "results": {title: {"wer": value, "bleu": 100 * value}},
    "units": {title: {"wer": "fraction", "bleu": "points"}},
    "higher_is_better": {title: {"wer": False, "bleu": True}},
    "intervals": {title: {"wer": [value - 0.01, value + 0.01]}},
    "signatures": {title: {"wer": "one", "bleu": "two"}},
    "skipped": {title: {"meaning": "no BERT"}},
}))
if (Path(os.environ.get("WISHES", ".")) / f"late{beams}").exists():
    sys.exit("error: killed at the very end")
print("{}")
"""


class Sweeping:
    """A sweep whose programs do as the files in `wishes` say."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.wishes = folder, folder / "wishes"
        self.wishes.mkdir()
        monkeypatch.setenv("WISHES", str(self.wishes))
        monkeypatch.chdir(folder)
        (folder / "train.py").write_text(TRAIN)
        (folder / "evaluate.py").write_text(EVALUATE)
        self.programs = Programs(("-S", str(folder / "train.py")), ("-S", str(folder / "evaluate.py")))
        self.values: dict[str, Any] = {
            "base": "demo-qformer",
            "output_dir": "out",
            "grid": {"queries": [10, 20, 30]},
            "evaluate": {"splits": ["dev"], "metrics": ["wer", "bleu"]},
        }

    def __call__(self, pool: Callable[[], Pool] = Here, retry_failed: bool = False, **values: Any) -> Made:
        source = self.folder / "grid.yaml"
        source.write_text("# A sweep.\n")
        grid = parse_grid("grid", {**self.values, **values})
        self.told: list[str] = []
        return make_table(str(source), grid, expand(grid), pool, self.hear, retry_failed, self.programs)

    def hear(self, line: str) -> None:
        """A line of progress; what a killed sweep left behind may end when it is waited for."""
        self.told.append(line)
        if "still works on it, left by a sweep that was killed" in line:
            (self.wishes / "go").touch()

    def begun(self) -> dict[str, int]:
        """How often each training was begun, by the name of its run."""
        found = self.folder.glob("out/runs/*/training/begun")
        return {path.parent.parent.name.rpartition("-")[0]: len(path.read_text().splitlines()) for path in found}

    def failures(self) -> list[dict[str, Any]]:
        path = self.folder / "out" / "failures.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def sweeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeping:
    return Sweeping(tmp_path, monkeypatch)


def test_a_second_run_does_nothing_and_a_changed_grid_what_is_new(sweeping):
    two = {"queries": [10, 20]}
    made = sweeping(seeds=2, grid=two)
    assert len(made.swept.done) == 4
    assert made.lines[0] == "| Queries | Parameters | WER dev, % ↓ | BLEU dev ↑ |"
    assert made.lines[2:4] == [
        "| 10 | 10,000 | **1.50 ± 0.71** | 1.50 ± 0.71 |",
        "| 20 | 20,000 | 2.50 ± 0.71 | **2.50 ± 0.71** |",
    ]
    again = sweeping(seeds=2, grid=two)
    assert (len(again.swept.before), again.swept.done) == (4, [])
    assert again.lines == made.lines
    more = sweeping(seeds=3, grid={"queries": [20, 30]}, exclude=[{"queries": 30}])
    assert more.swept.done == ["queries20-seed2"]
    assert len(more.lines) == len(made.lines) - 1  # the queries that are gone are no row
    other = sweeping(seeds=[0], grid=two, evaluate={"splits": ["dev"], "options": {"beams": 4}})
    assert len(other.swept.done) == 2  # evaluated in another way, and not trained again
    assert set(sweeping.begun().values()) == {1}


def test_failures_are_kept_apart_and_tried_again_on_request(sweeping):
    (sweeping.wishes / "20").write_text("fail")
    (sweeping.wishes / "30").write_text("die")
    made = sweeping()
    assert (made.swept.done, made.swept.failed) == (["queries10-seed0"], ["queries20-seed0", "queries30-seed0"])
    first, second = sweeping.failures()
    assert (first["run"], first["step"], first["status"]) == ("queries20-seed0", "train", 2)
    assert first["reason"] == "no luck with 20 queries"
    assert first["tail"] == ["loading", "error: no luck with 20 queries"]
    assert second["reason"] == "killed by SIGKILL; too little memory?"
    assert made.lines[3] == "| 20 |  | failed | failed |"
    assert "- queries20-seed0 failed at train: no luck" in (sweeping.folder / "out" / "table.md").read_text()
    again = sweeping()
    assert (again.swept.failed, again.swept.done) == (made.swept.failed, [])
    assert any("2 failed before (--retry-failed tries again), 0 to do" in line for line in sweeping.told)
    (sweeping.wishes / "20").unlink()
    mended = sweeping(retry_failed=True)
    assert (mended.swept.done, mended.swept.failed) == (["queries20-seed0"], ["queries30-seed0"])
    assert [failure["run"] for failure in sweeping.failures()] == ["queries30-seed0"]
    assert sweeping.begun() == {"queries10-seed0": 1, "queries20-seed0": 2, "queries30-seed0": 3 - 1}


def test_what_an_earlier_try_said_is_not_told_again(sweeping, monkeypatch):
    (sweeping.wishes / "20").write_text("fail")
    sweeping(grid={"queries": [20]})
    (sweeping.wishes / "20").write_text("orphan")  # which waits until it is told to go on
    monkeypatch.setattr("encodeonce.evaluate.sweep.sweep.TELL_SECONDS", 0.0)
    monkeypatch.setattr("encodeonce.evaluate.sweep.sweep.TICK_SECONDS", 0.01)
    hear = sweeping.hear

    def go_on_when_it_speaks(line: str) -> None:
        hear(line)
        if line.endswith("loading"):
            (sweeping.wishes / "go").touch()

    sweeping.hear = go_on_when_it_speaks
    sweeping(grid={"queries": [20]}, retry_failed=True)
    said = [line for line in sweeping.told if "queries20-seed0, train: " in line]
    assert said == ["[1 of 1] queries20-seed0, train: loading"]


def test_an_evaluation_that_fails_leaves_the_others(sweeping):
    (sweeping.wishes / "dev").write_text("")
    one = {"queries": [10]}
    both = {"splits": ["dev", "test"], "metrics": ["wer"]}
    made = sweeping(grid=one, evaluate=both)
    assert made.swept.failed == ["queries10-seed0"]
    assert made.lines[2] == "| 10 | 10,000 | failed | **1.00** |"
    assert [failure["step"] for failure in sweeping.failures()] == ["evaluate dev"]
    (sweeping.wishes / "dev").unlink()
    assert not sweeping(grid=one, evaluate=both, retry_failed=True).swept.failed
    assert sweeping.begun() == {"queries10-seed0": 1}
    assert sweeping.failures() == []


def test_an_evaluation_that_ends_with_an_error_has_failed_whatever_it_wrote(sweeping):
    (sweeping.wishes / "late0").write_text("")
    one = {"queries": [10]}
    made = sweeping(grid=one)
    assert made.swept.failed == ["queries10-seed0"]
    assert made.lines[2] == "| 10 | 10,000 | failed | failed |"
    assert [failure["reason"] for failure in sweeping.failures()] == ["killed at the very end"]
    assert sweeping(grid=one).swept.failed == ["queries10-seed0"]
    (sweeping.wishes / "late0").unlink()
    assert sweeping(grid=one, retry_failed=True).swept.done == ["queries10-seed0"]


BEAMS: dict[str, Any] = {"greedy": None, "three": {"evaluate": {"beams": 3}}, "five": {"evaluate": {"beams": 5}}}


def test_ways_to_evaluate_are_rows_of_one_training(sweeping):
    (sweeping.wishes / "beams5").write_text("")
    axes = {"queries": [10, 20], "search": dict(list(BEAMS.items())[:2])}
    made = sweeping(seeds=2, grid=axes)
    assert made.lines[:6] == [
        "| Queries | Search | Parameters | WER dev, % ↓ | BLEU dev ↑ |",
        "| --- | --- | --: | --: | --: |",
        "| 10 | greedy | 10,000 | **1.50 ± 0.71** | 1.50 ± 0.71 |",
        "| 10 | three | 10,000 | 1.53 ± 0.71 | 1.53 ± 0.71 |",
        "| 20 | greedy | 20,000 | 2.50 ± 0.71 | 2.50 ± 0.71 |",
        "| 20 | three | 20,000 | 2.53 ± 0.71 | **2.53 ± 0.71** |",
    ]
    assert made.swept.done == ["queries10-seed0", "queries10-seed1", "queries20-seed0", "queries20-seed1"]
    assert [(run["name"], run["evaluate"]) for run in made.found["runs"]][::2] == [
        ("queries10-greedy-seed0", {}),
        ("queries10-three-seed0", {"beams": 3}),
        ("queries20-greedy-seed0", {}),
        ("queries20-three-seed0", {"beams": 3}),
    ]
    assert sweeping(seeds=2, grid=axes).swept.before == made.swept.done
    more = sweeping(grid={"queries": [10], "search": BEAMS})
    assert more.swept.failed == ["queries10-seed0"]
    assert more.lines[2:5] == [
        "| 10 | greedy | 10,000 | **1.00** | 1.00 |",
        "| 10 | three | 10,000 | 1.03 | **1.03** |",
        "| 10 | five | 10,000 | failed | failed |",
    ]
    (failure,) = sweeping.failures()
    assert (failure["step"], failure["reason"]) == ("evaluate dev of queries10-five-seed0", "too many beams")
    assert sweeping(grid={"queries": [10], "search": BEAMS}).swept.failed == ["queries10-seed0"]
    # What was never tried is not held up by what failed.
    (sweeping.wishes / "beams5").unlink()
    new = {**BEAMS, "seven": {"evaluate": {"beams": 7}}}
    assert sweeping(grid={"queries": [10], "search": new}).swept.done == ["queries10-seed0"]
    assert set(sweeping.begun().values()) == {1}


def test_what_failed_and_is_not_asked_for_any_more_holds_up_nothing(sweeping):
    (sweeping.wishes / "beams5").write_text("")
    assert sweeping(grid={"queries": [10], "search": BEAMS}).swept.failed == ["queries10-seed0"]
    made = sweeping(grid={"queries": [10], "search": dict(list(BEAMS.items())[:2])})
    assert (made.swept.failed, made.swept.before, sweeping.failures()) == ([], ["queries10-seed0"], [])


def test_one_training_is_never_at_two_workers(sweeping):
    """Two workers, three ways to evaluate each of two trainings: no training is begun twice."""
    made = sweeping(pool_of(None, (), 2), grid={"search": BEAMS, "queries": [10, 20]})
    assert sorted(made.swept.done) == ["queries10-seed0", "queries20-seed0"]
    assert sweeping.begun() == {"queries10-seed0": 1, "queries20-seed0": 1}
    assert [run["splits"]["dev"]["values"]["wer"] for run in made.found["runs"]] == pytest.approx(
        [0.01, 0.02, 0.0103, 0.0203, 0.0105, 0.0205]
    )


def test_checkpoints_stand_beside_what_is_trained_and_are_not_trained(sweeping):
    folder = write_checkpoint(sweeping.folder / "old", load_config("demo-qformer", ["adapter.queries=7", "seed=4"]))
    runs = {
        "old": {"checkpoint": str(folder)},
        "old, beams": {"checkpoint": str(folder), "evaluate": {"beams": 3}},
        "new": {"adapter.queries": 10},
    }
    made = sweeping(grid=None, runs=runs, seeds=2)
    assert made.lines[2:5] == [
        "| old | 12 | 4.70 | 4.70 |",
        "| old, beams | 12 | 4.73 | **4.73** |",
        "| new | 10,000 | **1.50 ± 0.71** | 1.50 ± 0.71 |",
    ]
    assert "Without ±: one training alone, and no other seeds of it." in made.lines
    assert made.swept.done == ["old", "new-seed0", "new-seed1"]
    assert sweeping.begun() == {"new-seed0": 1, "new-seed1": 1}
    assert [run["checkpoint"] for run in made.found["runs"]] == [str(folder), str(folder), None, None]
    (folder / "adapter.safetensors").rename(sweeping.folder / "kept")
    alone = {"base": None, "grid": None, "runs": {"moved": {"checkpoint": str(folder)}}}
    with pytest.raises(EvaluationError, match=r"run moved: .*old is no checkpoint"):
        sweeping(**alone)
    (sweeping.folder / "kept").rename(folder / "adapter.safetensors")
    assert sweeping(**alone).swept.before == ["moved"]  # found under its older name


SWEEP = """
import json, sys
from encodeonce.evaluate.sweep.expand import expand
from encodeonce.evaluate.sweep.grid import parse_grid
from encodeonce.evaluate.sweep.make import make_table
from encodeonce.evaluate.sweep.plan import Programs
from encodeonce.evaluate.sweep.pools import Here
grid = parse_grid("grid", json.loads(sys.argv[1]))
programs = Programs(("-S", "train.py"), ("-S", "evaluate.py"))
made = make_table("grid.yaml", grid, expand(grid), Here, lambda line: print(line, file=sys.stderr), programs=programs)
sys.exit(130 if made.swept.interrupted else 0)
"""


def start(sweeping: Sweeping) -> "subprocess.Popen[str]":
    """The same sweep in a process of its own, until its second training has begun."""
    (sweeping.folder / "grid.yaml").write_text("# A sweep.\n")
    command = [sys.executable, "-c", SWEEP, json.dumps(sweeping.values)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for _ in range(1000):
        if "queries20-seed0" in sweeping.begun():
            time.sleep(0.2)
            return process
        time.sleep(0.1)
    process.kill()
    raise AssertionError(f"the second training was never begun: {process.communicate()[1]}")


def test_an_interrupt_ends_the_child_and_the_same_command_goes_on(sweeping):
    (sweeping.wishes / "20").write_text("linger")
    process = start(sweeping)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    (begun,) = sweeping.folder.glob("out/runs/queries20-seed0-*/training/begun")
    child = int(begun.read_text().split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert sweeping.failures() == []
    assert not list(sweeping.folder.glob("out/runs/*/failed.json"))
    assert "not run" in (sweeping.folder / "out" / "table.md").read_text()
    (sweeping.wishes / "20").unlink()
    made = sweeping()
    assert (made.swept.before, made.swept.done) == (["queries10-seed0"], ["queries20-seed0", "queries30-seed0"])


def test_a_killed_sweep_waits_for_the_child_it_left_and_takes_its_result(sweeping):
    (sweeping.wishes / "20").write_text("orphan")
    process = start(sweeping)
    process.kill()
    process.communicate()
    made = sweeping()
    assert (made.swept.before, made.swept.failed) == (["queries10-seed0"], [])
    assert sweeping.begun() == {"queries10-seed0": 1, "queries20-seed0": 1, "queries30-seed0": 1}


def test_dask_workers_have_a_gpu_each_and_one_run_at_a_time(sweeping):
    made = sweeping(pool_of(None, ("5", "7")))
    assert len(made.swept.done) == 3
    begun = [path.read_text().split() for path in sweeping.folder.glob("out/runs/*/training/begun")]
    assert {gpu for _, gpu in begun} == {"5", "7"}


def test_options_that_contradict_each_other_are_refused(tmp_path):
    for words, told in (
        (("--gpus", "0", "--workers", "2"), "take one of them"),
        (("--gpus", "0", "--dask", "tcp://host:1"), "start them with CUDA_VISIBLE_DEVICES"),
    ):
        done = sweep(tiny(tmp_path, tmp_path), *words)
        assert done.status == 2
        assert told in done.err


VALUES = st.one_of(st.none(), st.just("failed"), st.just("waiting"), st.integers(0, 2000).map(lambda n: n / 1000))


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.tuples(st.sampled_from("abc"), st.integers(0, 4)), VALUES, min_size=1), st.booleans())
def test_means_and_deviations_are_those_of_pandas(found, higher):
    results = [
        Result(
            f"{setting}{seed}",
            {"some": setting},
            seed,
            {
                "dev": Measured({} if value is None else {"m": value}, higher_is_better={"m": higher})
                if value is None or isinstance(value, float)
                else value
            },
        )
        for (setting, seed), value in found.items()
    ]
    table = tabulate(results, ["m"], ["dev"])
    numbers = {key: value if isinstance(value, float) else np.nan for key, value in found.items()}
    frame = pd.Series(numbers, dtype=float).groupby(level=0, sort=False)
    means, deviations, counts = frame.mean(), frame.std(ddof=1), frame.count()
    assert [row.labels["some"] for row in table.rows] == list(means.index)
    best = (means.max() if higher else means.min()) if counts.sum() else None
    for row in table.rows:
        (cell,), name = row.cells, row.labels["some"]
        assert len(cell.values) == counts[name]
        assert (cell.mean is None) == (counts[name] == 0)
        assert cell.mean is None or cell.mean == pytest.approx(means[name])
        assert (cell.deviation is None) == (counts[name] < 2)
        assert cell.deviation is None or cell.deviation == pytest.approx(deviations[name], abs=1e-12)
        assert cell.mean is None or best is None or cell.best == (cell.mean == pytest.approx(best))
        said = [value for (setting, _), value in found.items() if setting == name]
        assert (cell.failed, cell.waiting, cell.without) == tuple(said.count(x) for x in ("failed", "waiting", None))


def test_a_cell_says_what_is_lacking():
    column, points, ratio = (Column("some", "dev", unit) for unit in ("fraction", "points", "ratio"))
    assert shown(Cell({0: 0.5261}), column) == "52.61"
    assert shown(Cell({0: 0.5, 1: 0.52}), column) == "51.00 ± 1.41"
    assert shown(Cell({0: 0.5, 1: 0.52}, failed=1, waiting=2), column) == "51.00 ± 1.41 (n=2, 1 failed, 2 not run)"
    assert shown(Cell({}, failed=1, waiting=1), column) == "failed"
    assert shown(Cell({}, waiting=1), column) == "not run"
    assert shown(Cell({}, without=2), column) == "-"
    assert shown(Cell({0: 31.456}), points) == "31.46"
    assert shown(Cell({0: 0.012345}), ratio) == "0.0123"


def test_the_files_say_the_same_and_escape_what_they_are_given(tmp_path):
    results = [
        Result(f"{name}-{seed}", {"a|b": name}, seed, {"dev": Measured({"wer": value})}, parameters=1_500_000)
        for name, values in (("<i>x</i>", (0.25, 0.35)), ("y|z", (0.5, 0.7)))
        for seed, value in enumerate(values)
    ] + [Result("bad-0", {"a|b": "bad"}, 0, {"dev": "failed"})]
    table = tabulate(results, ["wer", "cer"], ["dev"])
    told = Told("<b>", "About <b>", [{"run": "bad-0", "step": "train", "reason": "<script>"}])
    rows = list(csv.DictReader(io.StringIO(csv_of(table))))
    assert float(rows[0]["wer dev mean"]) == pytest.approx(fmean((0.25, 0.35)))
    assert (rows[0]["wer dev n"], rows[0]["wer dev best"], rows[2]["wer dev failed"]) == ("2", "True", "1")
    cell = json.loads(json.dumps(as_object(told, table, results)))["rows"][1]["cells"][0]
    assert (cell["values"], cell["std"]) == ({"0": 0.5, "1": 0.7}, pytest.approx(0.1414, abs=1e-4))
    lower = [column["higher_is_better"] for column in as_object(told, table, results)["columns"]]
    assert lower == [False, None]  # nobody knows of CER, which nothing has
    text = "\n".join(markdown(table))
    assert text.startswith("| A\\|b | Parameters | WER dev, % ↓ | CER dev |")
    assert "**30.00 ± 7.07**" in text
    assert "y\\|z" in text
    page = write_pages(tmp_path, told, table).read_text()
    assert "★ 30.00 ± 7.07" in page
    assert "failed" in page
    assert "<svg" in page
    assert "<script>" not in page.replace(page[page.rindex("<script>") :], "")
    assert "<i>x" not in page
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_cells_that_do_not_compare_have_no_best_one():
    results = [
        Result(f"{name}-0", {"some": name}, 0, {"dev": Measured({"wer": value}, signatures={"wer": f"by {way}"})})
        for name, value, way in (("a", 0.2, "letters"), ("b", 0.5, "words"))
    ]
    alike, apart = (tabulate(some, ["wer"], ["dev"]) for some in (results[:1], results))
    assert alike.rows[0].cells[0].best
    assert not any(row.cells[0].best for row in apart.rows)
    said = "WER on dev was computed in several ways, so that its cells do not compare and none is the best"
    assert said in " ".join(notes(apart))
    told = "on dev computed in several ways, and values do not compare"
    assert told in draw(apart, "wer")[0]
    assert told not in draw(alike, "wer")[0]


def test_runs_beside_a_grid_stand_in_its_first_column():
    results = [
        Result("a", {"adapter.layers": "2", "size": "small"}, 0, {"dev": Measured({"matching_accuracy": 0.5})}),
        Result("b", {"run": "as it was"}, 0, {"dev": "waiting"}),
    ]
    table = tabulate(results, ["matching_accuracy"], ["dev"])
    assert [line.replace(" ", "") for line in markdown(table)] == [
        "|Layers|Size|Parameters|Matchingaccuracy,dev,%↓|",
        "|---|---|--:|--:|",
        "|2|small||**50.00**|",
        "|asitwas|||notrun|",
    ]
    assert csv_of(table).startswith("adapter.layers,size,run,")


def test_options_of_an_evaluation_become_those_of_its_command():
    made = parse_grid(
        "some",
        {
            "base": "x",
            "evaluate": {
                "splits": "dev",
                "options": {"beams": 4, "report": False, "leave-out": ["a", "b"], "language": None},
            },
        },
    )
    assert flags(made.evaluate.options) == ["--beams", "4", "--no-report", "--leave-out", "a", "--leave-out", "b"]


def tiny(folder: Path, store: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(
        json.dumps(
            {
                "store": str(store),
                "output_dir": str(folder / "out"),
                "base": str(folder / "base.yaml"),
                "grid": {"adapter.hidden": [8, 32]},
                "evaluate": {
                    "splits": ["train"],
                    "where": "speaker == 'w'",
                    "options": {"attention": 0, "leave_out": ["bertscore"], "report": False},
                },
            }
        )
    )
    base = {
        "output_dir": "x",
        "data": {"train": ["train"], "dev_where": "speaker == 'w'", "frames_per_batch": 200},
        "adapter": {"name": "concat-mlp", "concat": 1, "hidden": 32},
        "objectives": {"ctc": {}},
        "training": {"learning_rate": 3e-2, "max_steps": 30, "eval_steps": 30, "device": "cpu", "threads": 1},
    }
    (folder / "base.yaml").write_text(json.dumps(base))
    return path


def sweep(*words: Any) -> Done:
    return run(main, [str(word) for word in words])


def test_two_real_trainings_become_a_table(letters, tmp_path):  # noqa: F811
    done = sweep(tiny(tmp_path, letters), "--json")
    assert done.status == 0, done.err
    cells = [row["cells"][0] for row in done.json["rows"]]
    assert [row["labels"] for row in done.json["rows"]] == [{"adapter.hidden": "8"}, {"adapter.hidden": "32"}]
    for run_ in done.json["runs"]:
        (checkpoint,) = (tmp_path / "out" / "runs").glob(f"{run_['name']}-*/training/best")
        dev = json.loads((checkpoint / "fingerprints.json").read_text())["dev"]
        assert run_["splits"]["train"]["values"]["wer_raw"] == pytest.approx(dev["wer"])
    assert sum(cell["best"] for cell in cells) >= 1
    assert (tmp_path / "out" / "table.html").is_file()
    (trained,) = (tmp_path / "out" / "runs").glob("hidden32-*/training")
    told = {
        "old": {"checkpoint": str(trained)},
        "beam": {"checkpoint": str(trained / "last"), "evaluate": {"method": "beam", "beams": 2}},
    }
    words = ["base=null", "grid=null", f"runs={json.dumps(told)}", f"output_dir={tmp_path / 'evaluated'}"]
    again = sweep(tmp_path / "tiny.yaml", *words, "--json")
    assert again.status == 0, again.err
    old, beam = again.json["runs"]
    first = done.json["runs"][1]
    values = [{**one["splits"]["train"]["values"], "rtf": 0} for one in (first, old)]
    assert values[0] == values[1]
    assert old["parameters"] == beam["parameters"] == first["parameters"]
    assert beam["evaluate"]["method"] == "beam"
    (results,) = (tmp_path / "evaluated" / "runs").glob("old-*")  # which both share
    decoded = [json.loads(path.read_text())["decoding"] for path in results.glob("train-*/hypotheses.json")]
    assert sorted((one["method"], one["beams"]) for one in decoded) == [("beam", 2), ("greedy", None)]
    assert not (results / "training").exists()


REFUSED = (
    (["evaluate.splits=[devv]"], "run hidden8-seed0: "),
    (
        ["evaluate.splits=[other]", "evaluate.where=speaker != 'q'"],
        "other has a text to compare with: take another split",
    ),
    (
        ["evaluate.where=speeker == 'w'"],
        "run hidden8-seed0: evaluate.where: where \"speeker == 'w'\": no column 'speeker'",
    ),
    (["evaluate.where=speaker == 'q'"], "evaluate.where=speaker == 'q' chooses none of its 40 utterances"),
    (["evaluate.metrics=[werr]"], "evaluate.metrics: no metric werr (did you mean wer?); there are wer, wer_raw"),
    (["evaluate.metrics=[wer, bleu]"], "evaluate.metrics: no run is measured by bleu, with its objectives and target"),
    (["evaluate.metrics=[recall_at_1_speech_to_text]"], "no run is measured by recall_at_1_speech_to_text"),
    (["evaluate.metrics=[bertscore_f1]"], "no run is measured by bertscore_f1"),  # it is left out
    (
        ["evaluate.metrics=[bertscore_f1]", "evaluate.options={bert: ./nowhere}"],
        "run hidden8-seed0: evaluate.metrics: bertscore_f1, with bert of evaluate.options: BERTScore: there is no folder",
    ),
    (["evaluate.options={beem: 4}"], "evaluate.options: No such option"),
    (["evaluate.options={leave_out: [bertscor]}"], "evaluate.options: bertscor cannot be left out"),
    (["evaluate.options={temperature: 2}"], "evaluate.options: temperature=2.0 has no use with method=greedy"),
    (
        ["evaluate.options={writer: stg}"],
        "run hidden8-seed0: evaluate.options: writer=stg: this checkpoint was trained for ctc",
    ),
    (["evaluate.options={target: txt}"], "evaluate.options: data.target=txt: "),
    (["evaluate.options={device: tpu}"], "evaluate.options: "),
    (["evaluate.options={compare: nowhere}"], "evaluate.options: nowhere holds no samples.jsonl"),
    (["evaluate.options={compare: ., leave_out: [wer]}"], "evaluate.options: --compare tests word error rates"),
    (["evaluate.options={compare: ., task: translation}"], "and translation has none"),
    (["evaluate.options={resynthesis: [nowhere]}"], "evaluate.options: nowhere/results.json holds no rates of a codec"),
    (["evaluate.options={audio: nowhere}"], "run hidden8-seed0: evaluate.options: "),
    (["evaluate.options={word_times: ., attention: 0}"], "evaluate.options: --word-times is for what is drawn"),
    (["evaluate.options={word_times: ., report: false}"], "evaluate.options: --word-times is for what is drawn"),
    ([f"evaluate.options={{word_times: {__file__}}}"], "is no line of a CTM file"),
    (["evaluate.options={help: true}"], "evaluate.options.help: a sweep sets it itself"),
    (["evaluate.options={references: x}"], "evaluate.options.references is of texts"),
    (["evaluate.options={language: {a: b}}"], "evaluate.options.language={'a': 'b'}: take a text"),
    (["data.target=txt", "evaluate.options.target=text"], "run hidden8-seed0: data.target=txt: "),
    (["data.train_where=sp == 1"], "run hidden8-seed0: where 'sp == 1': no column 'sp'"),
    (["data.outputs=[layer-3]"], "run hidden8-seed0: "),
    (["objectives.stc={}"], "run hidden8-seed0: objectives.stc reads or writes text"),
    (["store=nowhere"], "nowhere"),
)


def test_bad_requests_are_refused_before_anything_is_trained(letters, tmp_path):  # noqa: F811
    path = tiny(tmp_path, letters)
    for words, told in REFUSED:
        done = sweep(path, *words)
        assert done.status == 2, words
        assert told in done.err
        assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_bad_checkpoints_and_evaluations_are_refused_before_anything_is_done(letters, tmp_path):  # noqa: F811
    path, config = tiny(tmp_path, letters), load_config(tmp_path / "base.yaml")
    fingerprint = FeatureStore(letters, "toy", "train").fingerprint
    checkpoint = write_checkpoint(tmp_path / "ours", config, fingerprint)
    other = write_checkpoint(tmp_path / "other", config, "f" * 64)
    for values, told in (
        ({"checkpoint": str(other)}, "run a: "),
        ({"checkpoint": str(other)}, "was trained on something else"),
        ({"checkpoint": str(checkpoint), "evaluate": {"beem": 4}}, "run a: evaluate: No such option"),
        ({"checkpoint": str(checkpoint), "evaluate": {"beams": 4}}, "run a: evaluate: beams=4 has no use with method"),
        (
            {"checkpoint": str(checkpoint), "evaluate": {"writer": "stg"}},
            "run a: evaluate: writer=stg: this checkpoint",
        ),
        ({"evaluate": {"method": "sample"}}, "run a-seed0: evaluate: method=sample has no use with ctc"),
        ({"evaluate": {"target": "txt"}}, "run a-seed0: evaluate: data.target=txt"),
    ):
        words = ["grid=null", f"runs={json.dumps({'a': values})}", *(["base=null"] if "checkpoint" in values else [])]
        done = sweep(path, *words)
        assert (done.status, len(done.err.splitlines())) == (2, 1), values
        assert told in done.err
        done = sweep(path, *words, "--dry-run")
        assert done.status == 2
        assert told.removeprefix("run a: ").removeprefix("run a-seed0: ") in done.out + done.err
    assert not (tmp_path / "out").exists()
    told = {"old": {"checkpoint": str(checkpoint)}, "new": {}, "beam": {"evaluate": {"method": "beam"}}}
    done = sweep(path, "grid=null", f"runs={json.dumps(told)}", "--dry-run")
    assert done.status == 0, done.out[:3000]
    assert done.out.splitlines()[-1] == "3 runs, 1 trainings; nothing was trained"


def test_a_dry_run_lists_what_it_would_take(letters, tmp_path):  # noqa: F811
    done = sweep(tiny(tmp_path, letters), "--dry-run", "--json")
    assert done.status == 0, done.err
    assert [one["steps"] for one in done.json["runs"]] == [30, 30]
    assert done.json["runs"][0]["parameters"] < done.json["runs"][1]["parameters"]
    assert not (tmp_path / "out").exists()
    done = sweep(tmp_path / "tiny.yaml", "--dry-run", "evaluate.splits=[devv]")
    assert done.status == 2
    assert "hidden8-seed0   cannot be trained: " in done.out
    assert "hidden32-seed0  cannot be trained: " in done.out  # which is told it too, though it is looked at once
