"""What the machine can do: copying memory, a mapped file with a table of offsets, and reading the same file by system calls."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from synthetic import Corpus

from peers import Fill, System, put


def no_build(corpus: Corpus, folder: Path) -> None:
    """The corpus itself is the file."""


def memcpy(corpus: Corpus, folder: Path) -> Fill:
    """As many bytes as the batch has, from another buffer in memory."""
    source = np.ones((1, corpus.width), np.float16)

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        nonlocal source
        flat = out.reshape(-1, corpus.width)
        if len(source) < len(flat):
            source = np.ones_like(flat)
        np.copyto(flat, source[: len(flat)])

    return fill


def memmap(corpus: Corpus, folder: Path) -> Fill:
    """numpy.memmap of one flat file."""

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            put(slot, corpus[i])

    return fill


def preadv(corpus: Corpus, folder: Path) -> Fill:
    """os.preadv of each range of the flat file straight into its slot."""
    file = open(corpus.path, "rb")  # noqa: SIM115 (as long as the reader lives)
    row = corpus.width * 2

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            frames = int(corpus.frames[i])
            os.preadv(file.fileno(), [slot[:frames]], int(corpus.starts[i]) * row)
            slot[frames:] = 0

    return fill


SYSTEMS = [
    System("memcpy (no reading)", "flat", (), no_build, memcpy, reads=False),
    System("numpy.memmap", "flat", (), no_build, memmap),
    System("preadv loop", "flat", (), no_build, preadv),
]
