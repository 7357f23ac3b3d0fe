"""FeatureStore: what is read is what was encoded, without copies."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from commands import extract, split_folder, write_corpus
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output, StoreError
from encodeonce.store import ids as ids_module
from encodeonce.store.ids import IdIndex
from encodeonce.store.shards import POOL
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_readers import read_both
from streams import frames_of, make_store, status_of, values_of


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("reader")
    write_corpus(folder / "data" / "dev", [0.03, 0.5, 1.0, 0.66, 1.4])
    extract(folder / "data", "dev", folder / "s", "--dtype", "float32", "--shard-frames", "192")
    extract(folder / "data", "dev", folder / "s", "--dtype", "int8")
    return FeatureStore(folder / "s", encoder="fbank", split="dev", output="fbank-float32")


def test_every_utterance_equals_what_plain_readers_give(store):
    for output in store.outputs:
        values = read_both(store.path, output)
        assert sorted(values) == sorted(store.ids)
        for utterance in store:
            np.testing.assert_array_equal(utterance[output], values[utterance.id])


def test_features_are_views_that_cannot_be_written(store):
    features = store["utt-002"].features
    assert features.shape == (store["utt-002"].frames, 80)
    assert not features.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        features[0, 0] = 1


def test_a_store_can_be_pickled_and_used_as_a_context(store):
    with pickle.loads(pickle.dumps(store)) as copy:
        assert copy.ids == store.ids
        np.testing.assert_array_equal(copy[0].features, store[0].features)


def test_a_split_is_found_by_store_set_or_path(store):
    set_folder = store.path.parent
    for opened in (
        FeatureStore(set_folder.parent, "fbank", "dev"),
        FeatureStore(set_folder),
        FeatureStore(set_folder.parent),
    ):
        assert opened.path == store.path
    assert store.encoder == "fbank"
    assert store.frame_rate == 100
    assert len(store) == 5
    assert "utt-001" in store
    assert store[-1].id == store.ids[-1]
    with pytest.raises(IndexError):
        store[5]
    with pytest.raises(StoreError, match="no folder"):
        FeatureStore(Path("nowhere"))


def test_a_second_output_is_chosen_by_name(store):
    restored = store["utt-002"]["fbank-int8"]
    assert restored.dtype == np.float32
    error = restored - store["utt-002"]["fbank-float32"]
    assert np.abs(error).max() < 0.1
    assert split_folder(store.path.parent.parent, "dev") == store.path


def test_a_padded_batch_holds_each_utterance_once_copied(store):
    for output in store.outputs:
        names = ["utt-003", "utt-000", "utt-003"]
        values, lengths = store.read(names, output)
        assert values.shape == (3, max(store[n].frames for n in names), 80)
        assert lengths.tolist() == [store[n].frames for n in names]
        for row, name, frames in zip(values, names, lengths, strict=True):
            np.testing.assert_array_equal(row[:frames], store[name][output])
            assert not row[frames:].any()
    room = np.full(100_000, np.nan, np.float32)
    filled = store.read([1, -1], out=room).values
    np.testing.assert_array_equal(filled, store.read([1, 4]).values)
    assert np.shares_memory(filled, room)
    with pytest.raises(ValueError, match="room for"):
        store.read([1, 2], out=room[:10])
    assert store.read([]).values.shape == (0, 0, 80)


def test_unknown_names_are_told_with_what_is_close(store):
    with pytest.raises(KeyError, match=r"no utterance 'utt-0003' .* close to it: utt-003"):
        store.read(["utt-001", "utt-0003"])
    with pytest.raises(StoreError, match=r"no output 'fbank-int16' .* there are fbank-float32, fbank-int8"):
        store.read([0], "fbank-int16")


def test_a_closed_store_opens_its_shards_again_and_keeps_few_open(store, monkeypatch):
    store.close()
    monkeypatch.setattr(POOL, "_limit", 1)
    held = [utterance.features for utterance in store]
    assert len(POOL) == 1
    store.close()
    for utterance, features in zip(store, held, strict=True):
        np.testing.assert_array_equal(utterance.features, features)


def test_a_forked_process_reads_though_a_thread_held_the_lock(store):
    store.read([0])
    with POOL._held():
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = int(
                    not np.array_equal(
                        store.read([0, 1]).values, FeatureStore(store.path).read([0, 1], store.output)[0]
                    )
                )
            finally:
                os._exit(code)
    assert status_of(child) == 0


def test_a_shard_that_was_rewritten_is_not_read_with_old_offsets(tmp_path):
    store = make_store(tmp_path / "s", frames_of(10))
    expected = store["utt-001"].features.copy()
    store.close()
    path = Path(str(store.path)) / "features.zarr" / "layer-9" / "c" / str(store["utt-001"].record["shard"]) / "0"
    path.write_bytes(path.read_bytes())
    with pytest.raises(StoreError, match=r"was rewritten since the store was opened; open the store again"):
        _ = store["utt-001"].features
    np.testing.assert_array_equal(FeatureStore(store.path)["utt-001"].features, expected)


def test_a_pickled_store_refuses_another_table(tmp_path):
    store = make_store(tmp_path / "s", frames_of(4))
    pickled = pickle.dumps(store)
    assert pickle.loads(pickled)["utt-001"].text == "words of 1"
    make_store(tmp_path / "s", frames_of(5))
    with pytest.raises(StoreError, match=r"utterances\.parquet was replaced"):
        _ = pickle.loads(pickled)["utt-001"].text
    assert store["utt-001"].text == "words of 1"  # an open one keeps what it opened
    assert "utt-004" not in store


def test_a_newer_format_is_refused(tmp_path):
    store = make_store(tmp_path / "s", frames_of(2))
    path = Path(str(store.path)) / "features.zarr" / "zarr.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(StoreError, match="has format version 2; this encodeonce reads up to 1: upgrade"):
        FeatureStore(store.path)


def test_several_splits_are_read_as_one(tmp_path):
    a = make_store(tmp_path / "s", frames_of(5), split="a")
    b = make_store(tmp_path / "s", frames_of(7, seed=1), split="b", first=5)
    both = FeatureStore.concat([a, b])
    assert both.ids == a.ids + b.ids
    assert len(both) == 12
    mixed = [b.ids[2], a.ids[1], b.ids[0]]
    for row, name, frames in zip(*both.read(mixed)[:1], mixed, both.read(mixed).lengths, strict=True):
        np.testing.assert_array_equal(row[:frames], values_of(name, frames, 32, "float16").astype("float16"))
    assert both[-1].text == b[-1].text
    assert both.table["id"].to_pylist() == both.ids
    batches = list(pickle.loads(pickle.dumps(both)).stream(frames_per_batch=400))
    assert sorted(name for batch in batches for name in batch.ids) == sorted(both.ids)
    for batch in batches:
        for i, name in enumerate(batch.ids):
            frames = int(batch.lengths[i])
            assert np.array_equal(batch.features[i, :frames], values_of(name, frames, 32, "float16").astype("float16"))


def test_what_does_not_belong_together_is_not_put_together(tmp_path):
    a = make_store(tmp_path / "s", frames_of(5), split="a")
    with pytest.raises(StoreError, match=r"utterance 'utt-00\d' is there twice"):
        FeatureStore.concat([a, a])
    other = make_store(tmp_path / "s", frames_of(5), split="a", encoder="elsewhere")
    with pytest.raises(StoreError, match=r'are of different feature sets .* encoder: "toy" against "elsewhere"'):
        FeatureStore.concat([a, other])
    with pytest.raises(StoreError, match="one store at least"):
        FeatureStore.concat([])


@settings(max_examples=50, deadline=None)
@given(names=st.lists(st.text(max_size=3), unique=True, max_size=40), other=st.text(max_size=3), cuts=st.integers(1, 7))
def test_ids_are_found_where_they_are(names, other, cuts):
    column = pa.chunked_array([pa.array(names[i::cuts], pa.string()) for i in range(cuts)])
    index, spread = IdIndex(column), column.to_pylist()
    assert [index.find(name) for name in spread] == list(range(len(spread)))
    assert index.find(other) == (spread.index(other) if other in spread else None)
    assert index.first_double() is None
    if names:
        doubled = IdIndex(pa.chunked_array([*column.chunks, pa.array([names[0]])]))
        assert doubled.first_double() == names[0]


def test_ids_of_one_hash_are_told_apart(monkeypatch):
    monkeypatch.setattr(ids_module, "hash", len, raising=False)
    index = IdIndex(pa.chunked_array([["ab", "cd", "e", "fg"]]))
    assert [index.find(name) for name in ("fg", "e", "ab", "cd", "xy")] == [3, 2, 0, 1, None]
    assert index.first_double() is None
    assert IdIndex(pa.chunked_array([["ab", "cd", "ab"]])).first_double() == "ab"


HOLDING = """
import resource, sys
from encodeonce.store import FeatureStore, StoreError
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))
store = FeatureStore(sys.argv[1])
try:
    held = [utterance.features for utterance in store]
except StoreError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def test_too_many_arrays_that_are_kept_are_told_how_to_go_on(tmp_path):
    store = make_store(tmp_path / "s", [100] * 80, shard_frames=128)
    done = subprocess.run([sys.executable, "-c", HOLDING, str(store.path)], capture_output=True, text=True)
    assert re.search(r"^StoreError: .*ulimit -n", done.stderr), done.stderr


def test_a_notebook_shows_a_store_with_everything_escaped(store, tmp_path):
    page = store._repr_html_()
    for part in ("5 utterances", "fbank-float32 (default)", "[T, 80]", "utt-000", "<details"):
        assert part in page
    strange = FeatureWriter(tmp_path, "<b>", "dev", [Output("x", 4, "float32", "<script>")], {}, 16_000, 320)
    strange.write([NewUtterance("<i>", 3, text="<script>alert(1)</script>")], lambda _: np.ones((3, 4), np.float32))
    page = FeatureStore(strange.path)._repr_html_()
    assert "<script" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_the_default_output_is_the_deepest_layer_by_number(tmp_path):
    names = ["layer-2", "layer-10", "layer-9-int8", "layer-10-int8", "codes"]
    outputs = [Output(n, 8, "int8" if "int8" in n else "uint16" if n == "codes" else "float16", n) for n in names]
    assert make_store(tmp_path / "s", frames_of(2), outputs).output == "layer-10"


def test_the_default_output_of_a_codec_is_its_codes(tmp_path):
    outputs = [
        Output(n, 8, "uint16" if "codes" in n else "float16", n) for n in ("latents", "codes-0", "codes", "latents-1-7")
    ]
    assert make_store(tmp_path / "s", frames_of(2), outputs).output == "codes"
    assert make_store(tmp_path / "t", frames_of(2), [o for o in outputs if o.name != "codes"]).output == "latents"


def test_a_place_that_contradicts_what_is_asked_is_refused(tmp_path):
    a = make_store(tmp_path / "s", frames_of(2), split="a")
    make_store(tmp_path / "s", frames_of(2), split="b")
    assert FeatureStore(a.path, encoder="toy", split="a").path == FeatureStore(a.path, encoder=a.path.parent.name).path
    with pytest.raises(StoreError, match=r"split whose split is 'a', not 'b'"):
        FeatureStore(a.path, split="b")
    with pytest.raises(StoreError, match=r"split whose encoder is 'toy', not 'hubert'"):
        FeatureStore(a.path, encoder="hubert")
    with pytest.raises(StoreError, match=r"feature set of 'toy', not of 'hubert'"):
        FeatureStore(a.path.parent, encoder="hubert", split="a")
    (Path(str(a.path)) / "features.zarr" / "zarr.json").unlink()
    with pytest.raises(StoreError, match=r"zarr\.json is missing"):
        FeatureStore(a.path)
