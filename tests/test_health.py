"""verify finds every kind of damage and changes nothing; repair and a new run make the store whole again."""

import json
import shutil
from pathlib import Path

import pytest
from commands import contents, extract, feature_store, split_folder, write_corpus
from encodeonce.store import DamagedError, FeatureStore
from plain_readers import read_both


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "data" / "dev", [0.5, 0.8, 1.6, 1.2])
    return tmp_path / "data"


@pytest.fixture
def split(data: Path, tmp_path: Path) -> Path:
    extract(data, "dev", tmp_path / "s", "--dtype", "int8", "--shard-frames", "192")
    return split_folder(tmp_path / "s", "dev")


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def shard(split: Path, number: int, output: str = "fbank-int8") -> Path:
    return split / "features.zarr" / output / "c" / str(number) / "0"


DAMAGE = {
    "truncated": (lambda s: shard(s, 1).write_bytes(shard(s, 1).read_bytes()[:-100]), "--quick", "bytes"),
    "deleted": (lambda s: shard(s, 1).unlink(), "--quick", "no such file"),
    "index": (lambda s: flip(shard(s, 1), -20), None, "crc32c"),
    "scales": (lambda s: flip(shard(s, 1, "fbank-int8-affine") / "0", 10), "--read-data", "sha256"),
    "payload": (lambda s: flip(shard(s, 1), 900), "--read-data", "sha256"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_repaired_and_filled_again(kind, data, split, tmp_path):
    harm, option, word = DAMAGE[kind]
    whole = {name: raw for name, raw in contents(split).items() if not name.startswith("commits")}
    assert feature_store("verify", split, "--read-data").status == 0
    harm(split)
    harmed = contents(split, times=True)
    found = feature_store("verify", split, *([option] if option else []))
    assert (found.status, word in found.err, "c/1/0" in found.err) == (1, True, True), found.err
    assert contents(split, times=True) == harmed

    mended = feature_store("repair", tmp_path / "s")
    assert (mended.status, "extract-features --encoder fbank" in mended.out) == (0, True), mended.err
    assert feature_store("verify", split, "--read-data").status == 0
    assert len(FeatureStore(split)) < 4
    assert extract(data, "dev", tmp_path / "s", "--dtype", "int8").split["failed"] == 0
    shutil.rmtree(split / "damaged")
    assert {name: raw for name, raw in contents(split).items() if not name.startswith("commits")} == whole
    assert len(read_both(split, "fbank-int8")) == 4


def test_tables_that_do_not_fit_the_records_are_found(split):
    record = split / "commits" / "1.json"
    content = json.loads(record.read_text())
    record.unlink()
    found = feature_store("verify", split)
    assert (found.status, "in no committed shard" in found.err) == (1, True)
    content["absent"] = ["utt-000", "utt-001", "utt-002", "utt-003"]
    record.write_text(json.dumps(content))
    assert feature_store("verify", split).status == 1
    (split / "utterances.parquet").write_bytes(b"nothing")
    assert "utterances.parquet" in feature_store("verify", split).err


def test_reading_what_is_damaged_is_an_error_and_never_wrong_values(split):
    store = FeatureStore(split)
    victims = [u.id for u in store if u.record["shard"] == 1]
    flip(shard(split, 1), -20)
    with pytest.raises(DamagedError, match="damaged index"):
        _ = FeatureStore(split)[victims[0]].features
    shard(split, 1).unlink()
    with pytest.raises(DamagedError, match="cannot be read"):
        _ = FeatureStore(split)[victims[0]].features


def test_a_store_of_a_newer_format_is_refused(split):
    path = split / "features.zarr" / "zarr.json"
    text = path.read_text()
    path.write_text(text.replace('"format_version": 1', '"format_version": 99'))
    done = feature_store("verify", split)
    assert done.status == 2  # not damaged
    assert "format version 99" in done.err


def test_ls_and_info_say_what_there_is(split, tmp_path):
    listed = feature_store("ls", tmp_path / "s", "--json").json["splits"]
    assert [(row["split"], row["utterances"]) for row in listed] == [("dev", 4)]
    said = feature_store("info", tmp_path / "s", "--json").json["feature_sets"]
    (entry,) = said.values()
    assert entry["identity"]["precision"] == "float32"
    output = entry["splits"][0]["outputs"]["fbank-int8"]
    assert 40 < output["least_snr_db"] <= output["mean_snr_db"]
    assert "fbank-int8" in feature_store("info", tmp_path / "s").out


def test_a_split_or_array_without_its_zarr_json_is_not_passed_over(split, tmp_path):
    (split / "features.zarr" / "fbank-int8-affine" / "zarr.json").unlink()
    done = feature_store("verify", tmp_path / "s")
    assert (done.status, "fbank-int8-affine/zarr.json" in done.err) == (1, True)
    (split / "features.zarr" / "zarr.json").unlink()
    done = feature_store("verify", tmp_path / "s")
    assert (done.status, "zarr.json" in done.err) == (1, True)


def test_a_lost_feature_set_file_is_written_again_by_the_next_run(data, split, tmp_path):
    path = split.parent / "feature-set.json"
    before = path.read_bytes()
    path.unlink()
    assert extract(data, "dev", tmp_path / "s", "--dtype", "int8").counts() == (0, 0, 4, 0)
    assert path.read_bytes() == before
