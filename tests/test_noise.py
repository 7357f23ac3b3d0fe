"""The signal-to-noise ratios that a store tells: what they are taken to, also through chains and for copied utterances."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import extract, feature_store, split_folder, write_corpus
from encodeonce.store import FeatureStore
from encodeonce.store.commits import Commit
from encodeonce.store.noise import Snr, of_fewer, of_split, summary
from hypothesis import given
from hypothesis import strategies as st

ratios = st.lists(st.floats(-10, 120), min_size=1, max_size=5)


def told(split: Path, output: str) -> dict[str, Any]:
    """What info --json says of an output of a split."""
    done = feature_store("info", split, "--json")
    assert done.status == 0, done.err
    (entry,) = done.json["feature_sets"].values()
    return entry["splits"][0]["outputs"][output]


def line(path: Path, output: str) -> str:
    """What info prints of an output."""
    (found,) = (line for line in feature_store("info", path).out.splitlines() if line.strip().startswith(f"{output}:"))
    return found


def measured(truth: Path, split: Path, output: str) -> list[float]:
    """The ratio of each utterance in dB, by plain numpy, to the float32 features of another store."""
    found = []
    for name in (ids := FeatureStore(truth).ids):
        clean = FeatureStore(truth).read([name], "fbank-float32").values.astype(np.float64)
        noise = clean - FeatureStore(split).read([name], output).values
        found.append(float(10 * np.log10((clean**2).sum() / (noise**2).sum())))
    assert len(ids) == 3
    return found


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Three utterances kept as int8 alone; `truth` beside it holds them in float32."""
    write_corpus(tmp_path / "data" / "a", [1.0, 1.7, 2.2])
    for store, dtype in (("features", "int8"), ("truth", "float32")):
        assert extract(tmp_path / "data", "a", tmp_path / store, "--dtype", dtype).status == 0
    return split_folder(tmp_path / "features", "a")


def test_the_ratio_of_a_widened_copy_does_not_hide_what_int8_lost(split: Path, tmp_path: Path):
    assert feature_store("derive", "cast", split, "--output", "fbank-int8", "--dtype", "float16").status == 0
    facts, true = (
        told(split, "fbank-from-int8"),
        measured(split_folder(tmp_path / "truth", "a"), split, "fbank-from-int8"),
    )
    assert facts["snr_to"] == "fbank-int8"
    assert facts["mean_snr_db"] > np.mean(true) + 3  # to its source alone
    worst = facts["worst_source"]
    assert worst["output"] == "fbank-int8"
    assert worst["mean_snr_db"] == pytest.approx(np.mean(true), abs=1.5)
    assert worst["least_snr_db"] == pytest.approx(min(true), abs=1.5)
    said = line(split, "fbank-from-int8")
    assert (
        f"SNR {facts['mean_snr_db']} dB (least {facts['least_snr_db']}) to fbank-int8; its worst source fbank-int8"
        in said
    )
    assert said.endswith(f"has {worst['mean_snr_db']} dB (least {worst['least_snr_db']})")
    extracted = told(split, "fbank-int8")
    assert (extracted["snr_to"], extracted["worst_source"]) == (None, None)
    assert " to " not in line(split, "fbank-int8").split("SNR")[1]


def test_the_worst_source_is_found_through_every_step(split: Path):
    for operation, source, *options in (
        ("cast", "fbank-int8", "--dtype", "float32", "--name", "wide"),
        ("normalise", "wide", "--name", "even"),
        ("pca", "even", "--dimensions", "4", "--dtype", "float32", "--name", "short"),
    ):
        done = feature_store("derive", operation, split, "--output", source, *options)
        assert done.status == 0, done.err
    facts, worst = told(split, "short"), told(split, "fbank-int8")
    assert (facts["mean_snr_db"], facts["snr_to"]) == (None, "pca(even)")  # float32 loses nothing of what pca gives
    assert facts["worst_source"]["output"] == "fbank-int8"
    assert facts["worst_source"]["mean_snr_db"] == worst["mean_snr_db"]
    assert "its worst source fbank-int8 has" in line(split, "short")
    assert told(split, "even")["snr_to"] == "normalise(wide)"


def test_a_feature_set_of_its_own_tells_of_its_parent_where_that_is_there(split: Path):
    parent = split.parent
    assert feature_store("derive", "stride", split, "--by", "2", "--output", "fbank-int8").status == 0
    strided = next(parent.parent.glob("fbank-stride2-*/a"))
    facts = told(strided, "fbank")
    assert facts["snr_to"] == f"stride(fbank-int8 of {parent.name})"
    assert facts["worst_source"]["output"] == f"fbank-int8 of {parent.name}"
    assert facts["worst_source"]["mean_snr_db"] == told(split, "fbank-int8")["mean_snr_db"]
    shutil.rmtree(parent)
    facts = told(strided, "fbank")
    assert (facts["snr_to"], facts["worst_source"]) == (f"stride(fbank-int8 of {parent.name})", None)


def test_copied_utterances_have_the_ratio_of_the_shard_they_come_from(split: Path, tmp_path: Path):
    source = told(split, "fbank-int8")
    write_corpus(tmp_path / "data" / "b", [1.0, 1.7])
    assert extract(tmp_path / "data", "b", tmp_path / "features", "--dtype", "int8").counts() == (0, 2, 0, 0)
    copied = told(split.with_name("b"), "fbank-int8")
    for figure in ("mean_snr_db", "least_snr_db"):
        assert copied[figure] == source[figure]

    write_corpus(tmp_path / "data" / "c", [1.0, 1.7, 2.0])
    write_corpus(tmp_path / "data" / "d", [2.0], first=2)  # what is new in c
    assert extract(tmp_path / "data", "d", tmp_path / "other", "--dtype", "int8").status == 0
    assert extract(tmp_path / "data", "c", tmp_path / "features", "--dtype", "int8").counts() == (1, 2, 0, 0)
    alone = told(split_folder(tmp_path / "other", "d"), "fbank-int8")["mean_snr_db"]
    mixed = told(split.with_name("c"), "fbank-int8")
    assert mixed["mean_snr_db"] == pytest.approx((2 * source["mean_snr_db"] + alone) / 3, abs=0.002)
    assert mixed["least_snr_db"] == min(source["least_snr_db"], alone)
    (record,) = (split.with_name("c") / "commits").iterdir()
    assert json.loads(record.read_text())["outputs"]["fbank-int8"]["snr_db"]["utterances"] == 3


def test_a_shard_that_lost_an_utterance_weighs_what_it_still_holds(split: Path, tmp_path: Path):
    def said() -> list[dict[str, Any]]:
        records = [json.loads(path.read_text()) for path in sorted((split / "commits").iterdir())]
        return [record["outputs"]["fbank-int8"]["snr_db"] for record in records]

    (before,) = said()
    write_corpus(tmp_path / "data" / "a", [1.2])
    done = extract(tmp_path / "data", "a", tmp_path / "features", "--dtype", "int8", "--replace")
    assert done.counts() == (1, 0, 2, 0)
    old, new = said()
    assert (before["utterances"], old, new["utterances"]) == (3, {**before, "utterances": 2}, 1)


def record(shard: int, utterances: int, snr: Any) -> Commit:
    return Commit(shard, 0, utterances, utterances, [], {"x": {"snr_db": snr}})


@given(st.lists(ratios, min_size=1, max_size=4))
def test_a_split_tells_the_mean_of_its_utterances_however_they_lie_in_shards(shards: list[list[float]]):
    """Utterances that lost nothing have no ratio, and weigh nothing."""
    together = [ratio for shard in shards for ratio in shard]
    found = of_split([record(n, len(s) + 7, summary([*s, float("inf")])) for n, s in enumerate(shards)], "x")
    assert found is not None
    assert found.utterances == len(together)
    assert found.least == pytest.approx(min(together), abs=0.001)
    assert found.mean == pytest.approx(np.mean(together), abs=0.002)


def test_records_of_older_versions_weigh_what_their_shards_hold():
    old = record(0, 3, {"least": 40.0, "mean": 42.0})
    assert of_split([old, record(1, 1, {"least": 41.0, "mean": 46.0})], "x") == Snr(40.0, 43.0, 4)
    assert summary([]) is None
    assert of_split([record(0, 3, None)], "x") is None
    assert of_fewer({"least": 40.0, "mean": 42.0}, 2) == {"least": 40.0, "mean": 42.0, "utterances": 2}
    assert of_fewer(None, 2) is None
    assert summary([Snr(30.0, 50.0), 40.0]) == {"least": 30.0, "mean": 45.0, "utterances": 2}
