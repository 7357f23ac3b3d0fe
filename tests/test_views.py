"""Views: Dask, xarray, WebDataset and pandas see the numbers that plain zarr sees."""

import pickle
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest
import webdataset
import zarr
from encodeonce.store import FeatureStore, StoreError
from encodeonce.store.objects import ObjectPath, store_path
from encodeonce.store.stats import load_statistics, statistics, statistics_path
from encodeonce.store.views import OutputArray, dask_array, frame_rows, shard_urls, webdataset_url, xarray_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_readers import read_both
from small_store import NAMES, OUTPUTS, features, with_another_split, write_store
from webdataset.gopen import gopen_schemes


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return write_store(tmp_path_factory.mktemp("views"))


@pytest.fixture(scope="module")
def two(store: FeatureStore) -> FeatureStore:
    return with_another_split(store)


def plain(store: FeatureStore, output: str) -> np.ndarray:
    return np.asarray(zarr.open_array(str(store.path / "features.zarr" / output), mode="r")[:])


@pytest.mark.parametrize("output", [output.name for output in OUTPUTS])
def test_dask_array_equals_plain_zarr_with_a_block_a_shard(store, output):
    lazy = dask_array(store, output, raw=True)
    expected = plain(store, output)
    assert lazy.chunks == ((256,) * (len(expected) // 256), (expected.shape[1],))
    assert len(lazy.chunks[0]) > 2
    found = lazy.compute(scheduler="threads")
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_int8_comes_restored_and_its_gaps_are_zero(store):
    found = dask_array(store, "layer-9-int8").compute()
    assert found.dtype == np.float32
    expected = np.zeros_like(found)
    values = read_both(store.path, "layer-9-int8")
    for name, row in zip(store.ids, frame_rows(store).tolist(), strict=True):
        expected[row : row + len(values[name])] = values[name]
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_slice_is_that_of_the_whole_array(store, data):
    array = OutputArray(store.parts[0], store.spec("layer-9"))
    whole = plain(store, "layer-9")
    rows = data.draw(st.one_of(st.slices(len(whole)), st.integers(-len(whole), len(whole) - 1)))
    columns = data.draw(st.slices(32))
    np.testing.assert_array_equal(array[rows, columns], whole[rows, columns])
    lazy = dask_array(store, "layer-9")
    np.testing.assert_array_equal(lazy[rows, columns].compute(scheduler="sync"), whole[rows, columns])


def test_a_slice_of_dask_reads_only_the_shards_it_touches(store):
    copy = pickle.loads(pickle.dumps(store))
    lazy = dask_array(copy, "layer-9")
    row = int(copy.parts[0].rows[-1])
    shard = copy.path / "features.zarr" / "layer-9" / "c" / "0" / "0"
    hidden = shard.rename(shard.with_name("hidden"))
    try:
        assert lazy[row : row + 3].compute().any()
        with pytest.raises(StoreError, match="c/0/0"):
            lazy[:3].compute()
    finally:
        hidden.rename(shard)


def test_a_dask_array_can_be_sent_to_other_processes(store):
    lazy = dask_array(store)
    copy = pickle.loads(pickle.dumps(lazy))
    np.testing.assert_array_equal(copy.compute(scheduler="sync"), plain(store, "layer-9"))
    assert dask_array(store).name == lazy.name
    assert dask_array(store, "layer-9-int8").name != dask_array(store, "layer-9-int8", raw=True).name


def test_several_splits_lie_one_below_the_other(two):
    lazy = dask_array(two)
    for index, row in enumerate(frame_rows(two).tolist()):
        np.testing.assert_array_equal(lazy[row : row + two.frames[index]].compute(), two[index].features)


def test_xarray_finds_an_utterance_by_its_id(two):
    dataset = xarray_dataset(two)
    assert set(dataset.data_vars) == {output.name for output in OUTPUTS}
    assert dataset.attrs["encoder"] == "toy"
    assert dataset.attrs["frame_rate"] == 50
    for name in ("bert/a b.c", "test-bert-3", "test-anna-05"):
        one = dataset.sel(utterance=name)
        frames = slice(int(one.row), int(one.row + one.frames))
        for output in ("layer-9", "layer-9-int8", "codes"):
            assert dataset[output].dims == ("frame", f"feature_{output}")
            np.testing.assert_array_equal(dataset[output].isel(frame=frames).values, two[name][output])
    assert str(dataset.sel(utterance="bert/a b.c").speaker.values) == "bert"
    assert str(dataset.sel(utterance="bert-3").text.values) == ""
    assert len(dataset.utterance) == 2 * len(NAMES)


def test_an_xarray_dataset_can_be_saved_and_opened_again(store, tmp_path):
    import xarray

    xarray_dataset(store).to_zarr(tmp_path / "copy.zarr", consolidated=False)
    back = xarray.open_zarr(tmp_path / "copy.zarr", consolidated=False)
    np.testing.assert_array_equal(back["layer-9"].values, plain(store, "layer-9"))
    assert back.utterance.values.tolist() == store.ids


def test_webdataset_opens_the_shards_as_they_are(two):
    urls = shard_urls(two, "layer-9-float32")
    assert len(urls) == len(set(urls)) > 4
    dataset: Any = webdataset.WebDataset(urls, shardshuffle=False)
    samples = {sample["json"]["id"]: sample["npy"] for sample in dataset.decode()}
    assert set(samples) == set(two.ids)
    for name, values in samples.items():
        np.testing.assert_array_equal(values, features(name, len(values))["layer-9-float32"])


def test_the_table_is_a_frame_of_pandas(two):
    frame = two.table.to_pandas()
    assert isinstance(frame, pd.DataFrame)
    assert frame.groupby("speaker")["frames"].sum()["anna"] == 2 * sum(n for i, n in NAMES.items() if "anna" in i)


def test_the_table_is_read_by_polars_and_duckdb(store):
    path = str(store.path / "utterances.parquet")
    polars = pytest.importorskip("polars")
    assert polars.read_parquet(path)["frames"].sum() == store.frames.sum()
    assert polars.from_arrow(store.table).shape[0] == len(store)
    duckdb = pytest.importorskip("duckdb")
    assert duckdb.sql(f"select sum(frames) from '{path}'").fetchone()[0] == store.frames.sum()


def test_a_store_in_memory_of_an_object_store_has_the_same_views(store):
    root, local = store_path("memory://views/s"), Path(str(store.path)).parents[1]
    assert isinstance(root, ObjectPath)
    for path in local.rglob("*"):
        if path.is_file():
            (root / path.relative_to(local).as_posix()).put([path.read_bytes()])
    far = FeatureStore(root, split="dev", cache_bytes=0)
    for output in ("layer-9", "layer-9-int8"):
        np.testing.assert_array_equal(dask_array(far, output).compute(), dask_array(store, output).compute())
    found = statistics(far)
    assert str(statistics_path(far.parts[0], "layer-9")).startswith("memory://views/s/toy-")
    assert load_statistics(far) is not None
    np.testing.assert_array_equal(found.mean, statistics(store).mean)
    with pytest.raises(StoreError, match="WebDataset has no way to open memory://"):
        shard_urls(far)


@pytest.mark.parametrize(
    ("url", "opened"),
    [
        ("https://host/a/0", "https://host/a/0"),
        ("gs://bucket/a/0", "gs://bucket/a/0"),
        ("s3://bucket/a/0", "pipe:aws s3 cp s3://bucket/a/0 -"),
    ],
)
def test_urls_are_what_webdataset_has_a_handler_for(url, opened):
    assert webdataset_url(store_path(url)) == opened
    assert opened.partition(":")[0] in gopen_schemes


def test_an_unknown_output_is_named_with_those_there_are(store):
    for view in (dask_array, shard_urls):
        with pytest.raises(StoreError, match=r"no output 'layer-8'.*there are codes, layer-9"):
            view(store, "layer-8")


def test_blocks_are_read_by_threads_at_the_same_time(store):
    with dask.config.set(scheduler="threads", num_workers=8):
        total = dask_array(store, "layer-9-float32").sum(axis=0, dtype="f8").compute()
    np.testing.assert_allclose(total, plain(store, "layer-9-float32").sum(axis=0, dtype="f8"), rtol=1e-12)
