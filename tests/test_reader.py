"""FeatureStore: what is read is what was encoded, without copies."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from commands import extract, split_folder, write_corpus
from encodeonce.store import FeatureStore, StoreError
from plain_readers import read_both


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
