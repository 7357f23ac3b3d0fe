"""Statistics: those of numpy over every frame and no padding, kept while they hold, told in text and in a picture."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import feature_store
from encodeonce.store import FeatureStore, StoreError
from encodeonce.store import stats as stats_module
from encodeonce.store.layout import read_feature_set
from encodeonce.store.moments import Moments, Usage, join, measure
from encodeonce.store.stats import compute, load_statistics, statistics, statistics_path
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from object_server import WebServer
from plain_readers import read_both
from small_store import CONSTANT, NAMES, write_store

FLOATS = ["layer-9", "layer-9-float32", "layer-9-int8"]


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return write_store(tmp_path / "s")


def every_frame(store: FeatureStore, output: str) -> np.ndarray:
    """All frames one below the other, as zarr and WebDataset read them."""
    found = [read_both(Path(str(part.path)), output) for part in store.parts]
    return np.concatenate([values for split in found for values in split.values()])


def kept_file(store: FeatureStore, output: str = "layer-9") -> Path:
    path = statistics_path(store.parts[0], output)
    assert isinstance(path, Path)
    return path


@pytest.mark.parametrize("output", FLOATS)
def test_moments_are_those_of_numpy_over_every_frame(store, output):
    found, frames = statistics(store, output), every_frame(store, output).astype(np.float64)
    assert (found.frames, found.utterances) == (len(frames), len(NAMES)) == (sum(NAMES.values()), len(NAMES))
    np.testing.assert_allclose(found.mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, frames.var(axis=0), rtol=1e-11, atol=1e-20)
    np.testing.assert_array_equal(found.minimum, frames.min(axis=0))
    np.testing.assert_array_equal(found.maximum, frames.max(axis=0))
    assert isinstance(found.values, Moments)
    assert found.values.constant == [CONSTANT]


@pytest.mark.parametrize("output", ["codes", "units"])
def test_codes_are_counted(store, output):
    found, frames = statistics(store, output).values, every_frame(store, output)
    assert isinstance(found, Usage)
    for book, column in enumerate(frames.T):
        np.testing.assert_array_equal(found.counts[book], np.bincount(column, minlength=found.counts.shape[1]))
        share = np.unique(column, return_counts=True)[1] / len(column)
        assert found.perplexity[book] == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        assert found.used[book] == len(share)
    with pytest.raises(StoreError, match="codes: they have no mean"):
        _ = statistics(store, output).mean


def test_lengths_are_counted_in_seconds(store):
    found = statistics(store)
    seconds = store.table["duration"].to_numpy()
    assert found.seconds == pytest.approx(seconds.sum())
    assert found.length_counts.sum() == len(store)
    assert (found.length_edges[0], found.length_edges[-1]) == (0, seconds.max())


@given(
    values=arrays.arrays(
        np.float32, st.tuples(st.integers(1, 700), st.just(3)), elements=st.floats(-1e3, 1e3, width=32)
    ),
    cuts=st.lists(st.integers(1, 699), max_size=4),
    offset=st.sampled_from([0.0, 1e6]),
)
def test_moments_joined_in_any_way_are_those_of_the_whole(values, cuts, offset):
    values = values + np.float32(offset)
    parts = [part for part in np.split(values, sorted(cuts)) if len(part)]
    wide = values.astype(np.float64)
    for found in (measure(parts, "float32"), join([Moments.of(part) for part in reversed(parts)])):
        assert isinstance(found, Moments)
        assert found.count == len(values)
        np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(found.variance, wide.var(axis=0), rtol=1e-9, atol=1e-12 * (1 + offset))
        np.testing.assert_array_equal(found.minimum, wide.min(axis=0))


def test_they_are_kept_beside_the_splits_and_used_while_they_hold(store, monkeypatch):
    first = statistics(store)
    path = kept_file(store)
    assert path == store.path.parent / "stats" / "dev" / "layer-9.json"
    kept = json.loads(path.read_text())
    assert kept["over"]["frames"] == first.frames
    assert read_feature_set(store.path.parent).splits() == [store.path]
    assert feature_store("verify", store.path.parent, "--read-data").status == 0

    monkeypatch.setattr(stats_module, "compute", lambda *_: pytest.fail("computed again"))
    for again in (statistics(store), load_statistics(store)):
        assert again is not None
        np.testing.assert_allclose(again.variance, first.variance, rtol=1e-15)
        np.testing.assert_array_equal(again.mean, first.mean)
        assert again.content == first.content
    assert load_statistics(store, "codes") is None


def test_statistics_of_an_older_content_are_computed_again(store):
    first = statistics(store)
    grown = write_store(store.path.parent.parent, names={**NAMES, "new": 77})
    assert grown.path == store.path
    assert load_statistics(grown) is None
    found, frames = statistics(grown), every_frame(grown, "layer-9").astype(np.float64)
    assert found.frames == first.frames + 77 == len(frames)
    np.testing.assert_allclose(found.variance, frames.var(axis=0), rtol=1e-11)
    assert load_statistics(grown) is not None


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": "encodeonce statistics", "fingerprint": 3}'])
def test_a_file_that_cannot_be_used_is_made_again(store, text):
    path = kept_file(store)
    path.parent.mkdir(parents=True)
    path.write_text(text)
    expected = every_frame(store, "layer-9").astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(statistics(store).mean, expected, rtol=1e-12)
    assert load_statistics(store) is not None


def test_several_splits_are_joined_and_each_is_kept(store):
    two = FeatureStore.concat([store, write_store(store.path.parent.parent, "en/test", {"x": 33, "y": 70})])
    for output in ("layer-9", "codes"):
        found, frames = statistics(two, output), every_frame(two, output).astype(np.float64)
        assert (found.frames, found.utterances) == (len(frames), len(NAMES) + 2)
        if output == "layer-9":
            np.testing.assert_allclose(found.variance, frames.var(axis=0), rtol=1e-11)
        assert (store.path.parent / "stats" / "en" / "test" / f"{output}.json").is_file()


def test_where_nothing_can_be_written_the_numbers_still_come(store):
    (store.path.parent / "stats").write_text("in the way")
    with pytest.warns(UserWarning, match="not kept"):
        found = statistics(store)
    assert found.frames == sum(NAMES.values())
    done = feature_store("stats", store.path)
    assert (done.status, "not kept" in done.err, "constant" in done.out) == (0, True, True)


def test_a_web_server_is_read_and_nothing_is_kept_there(store):
    server = WebServer(Path(str(store.path)).parents[1])
    try:
        far = FeatureStore(f"{server.url}/{store.path.parent.name}/dev", cache_bytes=0)
        with pytest.warns(UserWarning, match="not kept"):
            found = statistics(far)
    finally:
        server.close()
    np.testing.assert_array_equal(found.mean, statistics(store).mean)


def test_the_progress_of_all_frames_is_told(store):
    told: list[int] = []
    compute(store.parts[0], store.spec(), told.append)
    assert len(told) == len(np.unique(store.parts[0].shards)) > 2
    assert sum(told) == sum(NAMES.values())


def test_the_command_tells_and_names_constant_dimensions(store, tmp_path):
    done = feature_store("stats", tmp_path / "s", "--json")
    assert done.status == 0, done.err
    assert f"1 of 32 dimensions never change: {CONSTANT} (always 0.25)" in done.out
    assert "layer-9.json" in done.err
    mean = every_frame(store, "layer-9").astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(done.json["mean"], mean, rtol=1e-12)
    codes = feature_store("stats", tmp_path / "s", "--output", "codes")
    assert codes.out.count("40 codes used, perplexity 3") == 4
    wrong = feature_store("stats", tmp_path / "s", "--output", "layer-8")
    assert (wrong.status, "no output 'layer-8'" in wrong.err, "layer-9" in wrong.err) == (2, True, True)


@pytest.mark.parametrize("output", ["layer-9", "codes"])
def test_a_picture_is_drawn(store, tmp_path, output):
    from matplotlib.image import imread

    done = feature_store("stats", store.path, "--output", output, "--picture", tmp_path / "out.png")
    assert done.status == 0, done.err
    pixels = imread(tmp_path / "out.png")
    assert pixels.shape[1] >= 1000
    assert (pixels[..., :3] < 0.9).any(axis=2).mean() > 0.01
    feature_store("stats", store.path, "--output", output, "--picture", tmp_path / "out.svg")
    text = (tmp_path / "out.svg").read_text()
    assert "<svg" in text
    wrong = feature_store("stats", store.path, "--picture", tmp_path / "out.doc")
    assert (wrong.status, "cannot write the picture" in wrong.err) == (2, True)


def test_a_missing_library_is_one_line_that_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask", None)
    done = feature_store("stats", store.path)
    assert (done.status, 'pip install "encodeonce[views]"' in done.err, len(done.err.splitlines())) == (2, True, 1)


def test_the_export_command_says_where_it_wrote(store, tmp_path):
    done = feature_store("export", tmp_path / "s", "--format", "npy", "--to", tmp_path / "out", "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json["export"]["path"] == str(tmp_path / "out")
    assert done.json["export"]["frames"] == sum(NAMES.values())
    again = feature_store("export", tmp_path / "s", "--format", "npy", "--to", tmp_path / "out")
    assert (again.status, "there already" in again.err) == (2, True)
