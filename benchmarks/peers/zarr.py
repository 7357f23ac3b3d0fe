"""Plain zarr-python over our store, utterance by utterance; and the same with the codec pipeline of zarrs."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from synthetic import Corpus

from peers import Fill, System, put
from peers.ours import FOLDER, OUTPUT, build


def first_rows(corpus: Corpus, split: Path) -> list[int]:
    """The global first row of each utterance."""
    table = pq.read_table(split / "utterances.parquet", columns=["id", "row"])
    rows = dict(zip(table["id"].to_pylist(), table["row"].to_pylist(), strict=True))
    return [rows[corpus.name(i)] for i in range(len(corpus))]


def split_of(folder: Path) -> Path:
    """The split of the store in a folder."""
    (table,) = folder.glob("*/train/utterances.parquet")
    return table.parent


def python(corpus: Corpus, folder: Path) -> Fill:
    """array[row : row + frames]."""
    import zarr

    split = split_of(folder)
    array: Any = zarr.open_array(split / "features.zarr" / OUTPUT, mode="r")
    rows = first_rows(corpus, split)

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            put(slot, array[rows[i] : rows[i] + int(corpus.frames[i])])

    return fill


def rust(corpus: Corpus, folder: Path) -> Fill:
    """The same code; the configuration at the time of opening chooses the pipeline."""
    import zarr
    import zarrs  # noqa: F401 (registers its pipeline)

    with warnings.catch_warnings(), zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        warnings.simplefilter("ignore")
        return python(corpus, folder)


SYSTEMS = [
    System("zarr-python", FOLDER, ("zarr",), build, python),
    System("zarr-python with zarrs", FOLDER, ("zarr", "zarrs"), build, rust),
]
