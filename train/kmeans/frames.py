"""The frames that a k-means learns from: mixed mini-batches out of a stream, in bounded memory."""

from collections.abc import Iterator
from itertools import count

import numpy as np
import pyarrow.compute as pc
from encodeonce.store.errors import StoreError
from encodeonce.store.reader import FeatureStore

POOL_FRAMES = 100_000
"""Frames that mini-batches are mixed from: those of some hundred utterances."""


class Frames:
    """Frames of an output, of all utterances of a store or of as many, drawn at random, as hold `limit` frames.

    Raises:
        StoreError: the output holds codes, or the store no frames.
    """

    def __init__(self, store: FeatureStore, output: str | None = None, limit: int | None = None, seed: int = 0) -> None:
        self.store, self.spec, self.seed = store, store.spec(output), seed
        if self.spec.dtype == "uint16":
            raise StoreError(
                f"{self.spec.name} of {store.path} holds codes ({self.spec.what}), and a k-means is made of features: "
                f"give another --output; there are {', '.join(store.outputs)}"
            )
        chosen = np.arange(len(store)) if limit is None else draw(store.frames, limit, seed)
        self.utterances = len(chosen)
        self.count = int(store.frames[chosen].sum(dtype=np.int64))
        if not self.count:
            raise StoreError(f"{store.path} holds no frames to learn from")
        self._longest = int(store.frames[chosen].max())
        self._where = None if limit is None else pc.field("id").isin([store.id(int(index)) for index in chosen])

    def batches(self, size: int, epochs: int | None = None) -> Iterator[np.ndarray]:
        """Mini-batches `[size, D]` float32 of so many epochs, the last one smaller, or without end: the same each time.

        Frames are mixed among `POOL_FRAMES`, of utterances in the stream's random order; int8 is restored.

        Raises:
            StoreError: a frame is no number.
        """
        full = max(size, min(POOL_FRAMES, self.count))
        pool = np.empty((full + self._longest, self.spec.width), np.float32)
        random, held = np.random.default_rng(self.seed), 0
        for values in self._utterances(epochs):
            pool[held : held + len(values)] = values
            held += len(values)
            if held >= full:
                order = np.argsort(random.random(held), kind="stable")
                for first in range(0, held - size + 1, size):
                    yield pool[order[first : first + size]]
                left = order[held - held % size :]
                pool[: len(left)] = pool[left]
                held = len(left)
        for first in range(0, held, size):
            yield pool[first : min(held, first + size)].copy()

    def _utterances(self, epochs: int | None) -> Iterator[np.ndarray]:
        stream = self.store.stream(
            frames_per_batch=max(POOL_FRAMES // 10, self._longest),
            seed=self.seed,
            where=self._where,
            outputs=self.spec.name,
            columns=(),
            rank=0,
            world_size=1,
            device=None,
            dtype="float32",
        )
        for _ in count() if epochs is None else range(epochs):
            for batch in stream:
                for name, values, length in zip(batch.ids, batch.features, batch.lengths.tolist(), strict=True):
                    found = np.asarray(values[:length])
                    if not np.isfinite(found).all():
                        raise StoreError(
                            f"utterance {name!r} of {self.store.path}: {self.spec.name} holds NaN or infinity; encode it again, "
                            f"or leave its split out"
                        )
                    yield found


def draw(lengths: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Positions of utterances in random order, of `lengths` frames, that hold at most `limit` frames together; one at least."""
    order = np.argsort(np.random.default_rng(seed).random(len(lengths)), kind="stable")
    within = int(np.searchsorted(np.cumsum(lengths[order], dtype=np.int64), limit, side="right"))
    return order[: max(1, within)]
