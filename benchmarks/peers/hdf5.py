"""HDF5 through h5py: one contiguous dataset of all frames, or a dataset an utterance."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from synthetic import Corpus

from peers import Fill, System


def build_flat(corpus: Corpus, folder: Path) -> None:
    """All frames in one dataset."""
    import h5py

    with h5py.File(folder / "features.h5", "w") as file:
        dataset = file.create_dataset("features", corpus.values.shape, np.float16)
        for i in range(len(corpus)):
            dataset[corpus.starts[i] : corpus.starts[i] + corpus.frames[i]] = corpus[i]


def flat(corpus: Corpus, folder: Path) -> Fill:
    """read_direct of each range into its slot."""
    import h5py

    dataset = h5py.File(folder / "features.h5", "r")["features"]

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            start, frames = int(corpus.starts[i]), int(corpus.frames[i])
            dataset.read_direct(slot, np.s_[start : start + frames], np.s_[:frames])
            slot[frames:] = 0

    return fill


def build_each(corpus: Corpus, folder: Path) -> None:
    """A dataset an utterance, by its id."""
    import h5py

    with h5py.File(folder / "features.h5", "w") as file:
        for i in range(len(corpus)):
            file.create_dataset(corpus.name(i), data=corpus[i])


def each(corpus: Corpus, folder: Path) -> Fill:
    """read_direct of each dataset into its slot."""
    import h5py

    file = h5py.File(folder / "features.h5", "r")

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            frames = int(corpus.frames[i])
            file[corpus.name(i)].read_direct(slot, np.s_[:], np.s_[:frames])
            slot[frames:] = 0

    return fill


SYSTEMS = [
    System("HDF5, one dataset", "hdf5-flat", ("h5py",), build_flat, flat),
    System("HDF5, a dataset an utterance", "hdf5", ("h5py",), build_each, each),
]
