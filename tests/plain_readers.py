"""Reading a split with plain zarr and plain WebDataset, nothing of ours."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import webdataset
import zarr


def read_both(split: Path, output: str) -> dict[str, np.ndarray]:
    """The values of every utterance, which zarr and WebDataset must agree on; int8 restored by the documented line."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrays: dict[str, Any] = dict(zarr.open_group(str(split / "features.zarr"), mode="r").arrays())
    array, affine = arrays[output], arrays.get(f"{output}-affine")
    assert (affine is not None) == (array.dtype == np.int8)
    metadata = json.loads((split / "features.zarr" / output / "zarr.json").read_text())
    C = metadata["codecs"][0]["configuration"]["chunk_shape"][0]
    by_zarr, values = {}, {}
    for row in pq.read_table(split / "utterances.parquet").to_pylist():
        start, frames = row["row"], row["frames"]
        by_zarr[row["id"]] = np.asarray(array[start : start + frames])
        values[row["id"]] = by_zarr[row["id"]]
        if affine is not None:
            values[row["id"]] = array[start : start + frames] * affine[start // C, 0] + affine[start // C, 1]
        past = np.asarray(array[start + frames : -(-(start + frames) // C) * C])
        assert not past.any(), f"padding after {row['id']}"
    shards = sorted((split / "features.zarr" / output).glob("c/*/0"), key=lambda p: int(p.parent.name))
    seen = set()
    if shards:
        dataset: Any = webdataset.WebDataset([str(s) for s in shards], shardshuffle=False)
        for sample in dataset.decode():
            name = sample["json"]["id"]
            assert name not in seen, f"{name} twice"
            seen.add(name)
            assert np.array_equal(sample["npy"], by_zarr[name])
            if affine is not None:
                scale, offset = sample["affine.npy"]
                assert np.array_equal(sample["npy"] * scale + offset, values[name])
    assert seen == set(values)
    return values
