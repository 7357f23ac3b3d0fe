"""WebDataset over our shards, one process: in the order of the shards, and through a shuffle buffer."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import Corpus

from peers import Epoch, System, collect
from peers.ours import FOLDER, OUTPUT, build
from peers.zarr import split_of


def read(shuffle: int, corpus: Corpus, folder: Path, frames_per_batch: int) -> Epoch:
    """WebDataset(shards).shuffle(...).decode()."""
    import webdataset

    shards = sorted(map(str, (split_of(folder) / "features.zarr" / OUTPUT).glob("c/*/0")))

    def epoch(buffer: np.ndarray) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        dataset: Any = webdataset.WebDataset(shards, shardshuffle=False)
        dataset = (dataset.shuffle(shuffle) if shuffle else dataset).decode()
        samples = ((corpus.index(sample["json"]["id"]), sample["npy"]) for sample in dataset)
        return collect(corpus, samples, buffer)

    return epoch


SYSTEMS = [
    System("WebDataset, sequential", FOLDER, ("webdataset",), build, sequence=partial(read, 0)),
    System("WebDataset, shuffle buffer of 1,000", FOLDER, ("webdataset",), build, sequence=partial(read, 1000)),
]
