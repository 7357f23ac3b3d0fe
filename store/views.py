"""A store as other libraries know it: Dask arrays with a block a shard, an xarray Dataset, shards for WebDataset."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.extras import extra
from encodeonce.store.files import read_json
from encodeonce.store.layout import Output
from encodeonce.store.objects import StorePath
from encodeonce.store.quantize import restore
from encodeonce.store.reader import FeatureStore
from encodeonce.store.split import Split

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

COORDINATES = ("frames", "shard", "samples", "duration", "speaker", "language", "text")
"""Columns of the table that are coordinates of the utterances in `xarray_dataset`, beside id and row."""


class OutputArray:
    """An output as the array `[shards * shard_frames, D]` that Zarr shows, read without a step a chunk.

    Slicing reads the utterances that the rows touch; between them there are zeros. int8 comes restored, as float32, or
    as it is stored where `raw`. It can be pickled, and threads may share it.
    """

    ndim = 2

    def __init__(self, part: Split, output: Output, raw: bool = False) -> None:
        self._part, self._output = part, output
        self._restored = output.dtype == "int8" and not raw
        self.dtype = np.dtype(np.float32 if self._restored else output.dtype)
        rows, width = read_json(part.paths.group / output.name / "zarr.json")["shape"]
        self.shape: tuple[int, int] = (rows, width)
        self.chunks = part.attributes.shard_frames, output.width

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        part = self._part
        return str(part.path), part.attributes.fingerprint, self._output.name, str(self.dtype), part.rows, part.frames

    def __getitem__(self, key: Any) -> np.ndarray:
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        wanted = range(self.shape[0])[rows]
        if isinstance(wanted, int):
            return self._read(wanted, wanted + 1)[0, columns]
        if not wanted:
            return np.empty((0, self.shape[1]), self.dtype)[:, columns]
        return self._read(min(wanted), max(wanted) + 1)[:: wanted.step, columns]

    def _read(self, start: int, stop: int) -> np.ndarray:
        """The rows from `start` to `stop`, `[stop - start, D]`."""
        part, found = self._part, np.zeros((stop - start, self.shape[1]), self.dtype)
        first, last = np.searchsorted(part.rows, [start, stop]).tolist()
        if first and part.rows[first - 1] + part.frames[first - 1] > start:
            first -= 1
        indices = np.arange(first, last)
        stored = part.views(self._output, indices)
        affines = part.affines(self._output, indices) if self._restored else [None] * len(stored)
        for row, values, affine in zip(part.rows[indices].tolist(), stored, affines, strict=True):
            some = values[max(start - row, 0) : stop - row]
            place = max(row - start, 0)
            found[place : place + len(some)] = some if affine is None else restore(some, affine)
        return found


def dask_array(store: FeatureStore, output: str | None = None, raw: bool = False) -> "da.Array":
    """An output as a lazy Dask array `[rows, D]`, a block a shard; the splits of a concatenated store one below the other.

    An utterance of a split stands in the rows `row` to `row + frames` of its table. Rows that no utterance has are zero:
    statistics belong on `store.stats`, which leaves them out. int8 comes restored, as float32, or as stored where `raw`.
    """
    with extra("views"):
        import dask.array as da
    name = store.spec(output).name
    arrays = [OutputArray(part, part.outputs[name], raw) for part in store.parts]
    lazy = [da.from_array(array, array.chunks, lock=False, asarray=False, fancy=False) for array in arrays]
    return da.concatenate(lazy) if len(lazy) > 1 else lazy[0]


def xarray_dataset(store: FeatureStore, raw: bool = False) -> "xr.Dataset":
    """A store as an xarray Dataset: a lazy variable an output, with the dimensions `frame` and `feature_<output>`.

    Its second axis are the utterances: the coordinate `utterance` holds their ids, `row` and `frames` say where their frames
    stand, and duration, speaker, language and text come along. A missing text is "", so that the Dataset can be saved.

        one = ds.sel(utterance="103-1240-0000")
        ds["layer-24"].isel(frame=slice(int(one.row), int(one.row + one.frames)))  # [T, D]
    """
    with extra("views"):
        import xarray as xr
    variables = {
        name: (("frame", f"feature_{name}"), dask_array(store, name, raw), {"what": store.spec(name).what})
        for name in store.outputs
    }
    coordinates: dict[str, Any] = {"utterance": _column(store, "id"), "row": ("utterance", frame_rows(store))}
    for name in COORDINATES:
        if any(part.table[name].null_count < len(part) for part in store.parts):
            coordinates[name] = ("utterance", _column(store, name))
    facts = {
        "encoder": store.encoder,
        "fingerprint": store.fingerprint,
        "frame_rate": store.frame_rate,
        "sample_rate": store.sample_rate,
    }
    return xr.Dataset(variables, coordinates, facts)


def frame_rows(store: FeatureStore) -> np.ndarray:
    """The first row of each utterance in `dask_array` and `xarray_dataset`, int64 `[N]`: `row` of the table in one split."""
    offset, rows = 0, []
    for part in store.parts:
        rows.append(part.rows + offset)
        offset += OutputArray(part, next(iter(part.outputs.values()))).shape[0]
    return np.concatenate(rows)


def _column(store: FeatureStore, name: str) -> np.ndarray:
    columns = [part.table[name] for part in store.parts]
    if columns[0].type == "string":
        return np.array([value or "" for column in columns for value in column.to_pylist()], object)
    return np.concatenate([column.to_numpy() for column in columns])


def shard_urls(store: FeatureStore, output: str | None = None) -> list[str]:
    """Where the shards of an output lie, in order, as plain WebDataset opens them: those that hold utterances.

    Objects of s3:// are read through the command `aws`, those of gs:// through `gsutil`, as WebDataset does it.
    """
    name = store.spec(output).name
    return [webdataset_url(path) for path in _shard_paths(store, name)]


def _shard_paths(store: FeatureStore, output: str) -> Iterator[StorePath]:
    for part in store.parts:
        for shard in np.unique(part.shards).tolist():
            yield part.paths.group / output / "c" / str(shard) / "0"


def webdataset_url(path: StorePath) -> str:
    """A shard's path as WebDataset opens it.

    Raises:
        StoreError: WebDataset has no handler for such a place.
    """
    if isinstance(path, Path):
        return str(path)
    url, scheme = str(path), urlsplit(str(path)).scheme
    if scheme in ("http", "https", "gs"):
        return url
    if scheme in ("s3", "s3a"):
        return f"pipe:aws s3 cp {shlex.quote(url)} -"
    raise StoreError(f"WebDataset has no way to open {url}; read it with store.stream(), or copy the shards to a disk")
