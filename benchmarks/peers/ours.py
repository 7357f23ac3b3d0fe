"""encodeonce: written by FeatureWriter, read by batch, by utterance, and as a stream."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from synthetic import FRAME_RATE, Corpus

from peers import Epoch, Fill, System, put

FOLDER = "encodeonce"
OUTPUT = "features"
SAMPLE_RATE = 16_000


def build(corpus: Corpus, folder: Path) -> None:
    """A store, through the public writer."""
    output = Output(OUTPUT, corpus.width, "float16", "random numbers")
    writer = FeatureWriter(folder, "synthetic", "train", [output], {"seed": 1}, SAMPLE_RATE, SAMPLE_RATE // FRAME_RATE)
    utterances = [NewUtterance(corpus.name(i), frames) for i, frames in enumerate(corpus.frames.tolist())]
    report = writer.write(utterances, lambda name: corpus[corpus.index(name)])
    assert not report.failed


def by_batch(corpus: Corpus, folder: Path) -> Fill:
    """store.read(ids, out=...)."""
    store = FeatureStore(folder)

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        store.read([corpus.name(i) for i in batch], out=out)

    return fill


def by_utterance(corpus: Corpus, folder: Path) -> Fill:
    """store[id].features, copied into the batch."""
    store = FeatureStore(folder)

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            put(slot, store[corpus.name(i)].features)

    return fill


def stream(threads: int, corpus: Corpus, folder: Path, frames_per_batch: int) -> Epoch:
    """store.stream(...): batches by its own plan, in buffers of its own."""
    batches = FeatureStore(folder).stream(frames_per_batch=frames_per_batch, seed=0, threads=threads, device="cpu")

    def epoch(buffer: np.ndarray) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        for batch in batches:
            yield [corpus.index(name) for name in batch.ids], np.asarray(batch.features)

    return epoch


SYSTEMS = [
    System("encodeonce store.read(ids)", FOLDER, (), build, by_batch),
    System("encodeonce store[id]", FOLDER, (), build, by_utterance),
    System("encodeonce stream, 1 thread", FOLDER, (), build, sequence=partial(stream, 1)),
    System("encodeonce stream, 2 threads", FOLDER, (), build, sequence=partial(stream, 2)),
]
