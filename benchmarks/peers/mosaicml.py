"""MosaicML streaming: MDS shards of the default size, read by index through LocalDataset."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from synthetic import Corpus

from peers import Fill, System, put


def build(corpus: Corpus, folder: Path) -> None:
    """The samples in order."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"features": "ndarray:float16"}) as writer:
        for i in range(len(corpus)):
            writer.write({"features": np.array(corpus[i])})


def by_index(corpus: Corpus, folder: Path) -> Fill:
    """dataset[i]."""
    from streaming import LocalDataset

    dataset = LocalDataset(local=str(folder))

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            put(slot, dataset[int(i)]["features"])

    return fill


SYSTEMS = [System("MosaicML streaming (MDS)", "mds", ("streaming",), build, by_index)]
