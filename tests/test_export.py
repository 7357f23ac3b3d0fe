"""Exports: the tools whose formats they are open them, and read the same numbers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encodeonce.store import FeatureStore, StoreError
from encodeonce.store.exports import FORMATS, export
from encodeonce.store.exports.base import file_stem
from encodeonce.store.exports.kaldi_ark import kaldi_name
from hypothesis import given
from hypothesis import strategies as st
from plain_readers import read_both
from small_store import NAMES, features, with_another_split, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return write_store(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def two(store: FeatureStore) -> FeatureStore:
    return with_another_split(store)


FLOATS = ["layer-9", "layer-9-float32", "layer-9-int8"]


def expected(store: FeatureStore, output: str) -> dict[str, np.ndarray]:
    """What zarr and WebDataset read of every split."""
    return {name: values for part in store.parts for name, values in read_both(Path(str(part.path)), output).items()}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("output", [*FLOATS, "codes"])
def test_npy_files_and_their_manifest(two, tmp_path, output):
    done = export(two, "npy", tmp_path / "out", output)
    manifest = [json.loads(line) for line in lines(done.path / "utterances.jsonl")]
    values = expected(two, output)
    assert [line["id"] for line in manifest] == two.ids
    for line in manifest:
        found = np.load(done.path / line["features"], allow_pickle=False)
        assert found.dtype == values[line["id"]].dtype
        np.testing.assert_array_equal(found, values[line["id"]])
        assert line["frames"] == len(found)
        stored = two[line["id"]]
        assert (line["duration"], line["text"], line["speaker"]) == (stored.duration, stored.text, stored.speaker)
        assert line["translations"] == stored.translations
        assert line["metadata"] == stored.metadata
    assert len(list(done.path.iterdir())) == len(two) + 1


@pytest.mark.parametrize("output", [*FLOATS, "codes"])
def test_lhotse_loads_and_validates_its_cuts(two, tmp_path, output):
    import lhotse

    done = export(two, "lhotse", tmp_path / "out", output)
    cuts = lhotse.load_manifest(done.path / "cuts.jsonl.gz")
    lhotse.validate(cuts, read_data=True)
    values = expected(two, output)
    assert {cut.id for cut in cuts} == set(two.ids)
    for cut in cuts:
        found: Any = cut.load_features()
        assert found.dtype == values[cut.id].dtype
        np.testing.assert_array_equal(found, values[cut.id])
        (supervision,) = cut.supervisions
        stored = two[cut.id]
        assert (supervision.text, supervision.speaker, supervision.language) == (stored.text, stored.speaker, "en")
        assert cut.custom["audio_duration"] == stored.duration
    longest = max(cuts, key=lambda cut: cut.num_frames)
    part: Any = longest.truncate(offset=0.4, duration=1.0)
    np.testing.assert_array_equal(part.load_features(), values[longest.id][20:70])


@pytest.mark.parametrize("output", FLOATS)
def test_kaldiio_reads_the_ark_by_its_scp(two, tmp_path, output):
    import kaldiio

    done = export(two, "kaldi", tmp_path / "out", output)
    found: Any = kaldiio.load_scp(str(done.path / "feats.scp"))
    values = {kaldi_name(name): array for name, array in expected(two, output).items()}
    assert set(found) == set(values)
    for name, array in values.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array.astype(np.float32))
    in_order = dict(kaldiio.load_ark(str(done.path / "feats.ark")))
    assert all(np.array_equal(in_order[name], found[name]) for name in values)


def test_a_kaldi_folder_is_sorted_by_bytes_and_agrees_with_itself(store, tmp_path):
    done = export(store, "kaldi", tmp_path / "out")
    for name in ("feats.scp", "text", "utt2spk", "spk2utt", "utt2num_frames", "utt2dur"):
        path = str(done.path / name)
        subprocess.run(["sort", "-c", path], env={**os.environ, "LC_ALL": "C"}, check=True)
        assert all(len(line.split()) > 1 for line in lines(done.path / name)), name
    frames = dict(line.split() for line in lines(done.path / "utt2num_frames"))
    assert frames == {kaldi_name(name): str(count) for name, count in NAMES.items()}
    speakers = dict(line.split() for line in lines(done.path / "utt2spk"))
    assert speakers["bert/a%20b.c"] == "bert"
    for line in lines(done.path / "spk2utt"):
        speaker, *names = line.split()
        assert names == [name for name in speakers if speakers[name] == speaker]
    texts = dict(line.split(" ", 1) for line in lines(done.path / "text"))
    assert texts["anna-01"] == "words of anna-01"
    assert set(speakers) - set(texts) == {"anna-03", "bert-3"}
    assert ["in 1 of them" in note for note in done.notes] == [True]


def test_kaldi_says_when_speakers_are_no_prefixes(two, tmp_path):
    (spaces, order) = export(two, "kaldi", tmp_path / "out").notes
    assert "in 2 of them" in spaces
    assert "do not begin with their speakers" in order


def test_kaldi_takes_units_as_integers_and_refuses_codes_of_several_codebooks(store, tmp_path):
    import kaldiio

    done = export(store, "kaldi", tmp_path / "units", "units")
    found: Any = kaldiio.load_scp(str(done.path / "feats.scp"))
    for name in store.ids:
        assert found[kaldi_name(name)].dtype == np.int32
        np.testing.assert_array_equal(found[kaldi_name(name)], store[name]["units"][:, 0])
    with pytest.raises(StoreError, match="4 codebooks of codes"):
        export(store, "kaldi", tmp_path / "codes", "codes")
    with pytest.raises(StoreError, match="no float16"):
        export(store, "kaldi", tmp_path / "half", dtype="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["units"]


@pytest.mark.parametrize("output", [*FLOATS, "codes"])
def test_datasets_loads_the_hugging_face_dataset(two, tmp_path, output):
    import datasets

    done = export(two, "huggingface", tmp_path / "out", output)
    values = expected(two, output)
    dtype = next(iter(values.values())).dtype
    dataset: Any = datasets.load_from_disk(str(done.path))
    dataset = dataset.with_format("numpy", dtype=dtype.type, columns=["id", "features"])
    assert set(dataset.column_names) == {*two.table.column_names, "features"}
    assert dataset.features["features"].dtype == dtype.name
    assert len(dataset) == len(two)
    for row in dataset:
        assert row["features"].dtype == dtype
        np.testing.assert_array_equal(row["features"], values[str(row["id"])])
    plain = dataset.with_format(None).remove_columns("features")
    assert plain.to_list() == two.table.to_pylist()
    assert not list(done.path.glob("building*"))


def test_what_datasets_caches_of_one_export_is_not_taken_for_another(store, two, tmp_path):
    import datasets

    exports = [(store, "layer-9"), (two, "layer-9"), (store, "layer-9-float32"), (store, "layer-9-int8")]
    seen = set()
    for number, (some, output) in enumerate(exports):
        dataset: Any = datasets.load_from_disk(str(export(some, "huggingface", tmp_path / str(number), output).path))
        assert dataset["id"][:] == some.ids
        seen.add(dataset._fingerprint)
    assert len(seen) == len(exports)


def test_the_dtype_can_be_chosen_and_is_refused_where_values_do_not_fit(store, tmp_path):
    half = export(store, "npy", tmp_path / "half", "layer-9-float32", "float16").path
    wide = export(store, "npy", tmp_path / "wide", "layer-9", "float32").path
    for name, frames in NAMES.items():
        values = features(name, frames)["layer-9"]
        found = np.load(half / f"{file_stem(name)}.npy")
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, values.astype(np.float16))
        found = np.load(wide / f"{file_stem(name)}.npy")
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values.astype(np.float16))
    with pytest.raises(StoreError, match="codes"):
        export(store, "npy", tmp_path / "codes", "codes", "float16")


def test_values_beyond_float16_are_an_error_and_no_infinity(tmp_path, monkeypatch):
    import small_store

    monkeypatch.setattr(small_store, "OUTPUTS", small_store.OUTPUTS[1:2])
    monkeypatch.setattr(small_store, "features", lambda name, n: {"layer-9-float32": np.full((n, 32), 1e5, np.float32)})
    store = small_store.write_store(tmp_path / "s")
    with pytest.raises(StoreError, match="beyond float16: export float32"):
        export(store, "npy", tmp_path / "out", dtype="float16")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_there_is_never_touched(store, tmp_path, form):
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="there already"):
        export(store, form, tmp_path / "out")
    with pytest.raises(StoreError, match="no output 'layer-8'"):
        export(store, form, tmp_path / "new", "layer-8")
    with pytest.raises(StoreError, match="local folder"):
        export(store, form, "s3://bucket/out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from encodeonce.store import FeatureStore
from encodeonce.store.exports import export
done = []
export(FeatureStore(sys.argv[1]), sys.argv[2], sys.argv[3],
       advance=lambda n: done.append(n) or len(done) < 4 or os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.parametrize("form", ["npy", "kaldi"])
def test_a_killed_export_leaves_nothing_under_the_name_and_the_next_one_is_whole(store, tmp_path, form):
    command = [sys.executable, "-c", KILLED, str(store.path), form, str(tmp_path / "out")]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.unfinished"]
    (tmp_path / ".out.unfinished" / "left").write_text("over")
    whole = {p.name: p.read_bytes() for p in export(store, form, tmp_path / "other").path.iterdir()}
    again = {p.name: p.read_bytes() for p in export(store, form, tmp_path / "out").path.iterdir()}
    place = (str(tmp_path / "other").encode(), str(tmp_path / "out").encode())
    assert again == {name: data.replace(*place) for name, data in whole.items()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_missing_library_is_one_line_that_says_what_to_install(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldiio", None)
    with pytest.raises(StoreError, match=r'needs the package kaldiio.*pip install "encodeonce\[export\]"'):
        export(store, "kaldi", tmp_path / "out")


@given(st.text(min_size=1, max_size=400), st.text(min_size=1, max_size=400))
def test_names_of_files_and_kaldi_ids_stay_apart(one, other):
    assert len(f"{file_stem(one)}.npy") < 255
    assert (file_stem(one) == file_stem(other)) == (one == other)
    assert not any(character.isspace() for character in kaldi_name(one))
    assert (kaldi_name(one) == kaldi_name(other)) == (one == other)
