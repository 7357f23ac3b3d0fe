"""Shards of an object store, brought to the disk cache before the batches that need them are due."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.streaming.selection import Source

DOWNLOADS = 8
"""Shards that are brought at the same time."""

BATCHES = 32
"""How many batches ahead of the one that is read next."""


def check_cache(sources: Sequence[Source], shard_window: int) -> None:
    """Refuse windows of shards that the disk cache cannot hold: two of them, since the next one comes while one is read.

    Raises:
        StoreError: they are too large; the message says which would do.
    """
    for source in sources:
        for part in source.store.parts:
            if not part.is_cached:
                continue
            needed = 2 * min(shard_window, len(np.unique(part.shards))) * len(sources)
            if part.cached_shards < needed:
                fitting = part.cached_shards // (2 * len(sources))
                way = f"take shard_window={fitting} or less (another order), or" if fitting else "take"
                raise StoreError(
                    f"the disk cache holds {part.cached_shards} shards of {part.path}, and two windows of shards of "
                    f"{len(sources)} outputs are {needed}; {way} a larger cache_bytes, or cache_bytes=0 to read ranges alone"
                )


class ShardsAhead:
    """Follows a sequence of batches and brings the shards of those that come. Does nothing for local stores."""

    def __init__(self, sources: Sequence[Source], batches: Sequence[np.ndarray]) -> None:
        self._batches, self._next = batches, 0
        self._shards = []
        for source in sources:
            if any(part.is_cached for part in source.store.parts):
                self._shards.append((source, source.by_shard(), source.shard_keys()))
        self._seen: set[tuple[int, int]] = set()
        self._running: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(DOWNLOADS, "bring") if self._shards else None

    def reach(self, batch: int) -> None:
        """Batch number `batch` of the sequence is read now."""
        if self._pool is None:
            return
        self._running = [future for future in self._running if not future.done()]
        while self._next < min(len(self._batches), batch + BATCHES) and len(self._running) < 2 * DOWNLOADS:
            for number, (source, shards, keys) in enumerate(self._shards):
                for key in np.unique(keys[self._batches[self._next]]).tolist():
                    if (number, key) not in self._seen:
                        self._seen.add((number, key))
                        part, shard, _ = shards[key]
                        # What goes wrong here goes wrong again where the batch is read, and is told there.
                        self._running.append(self._pool.submit(part.bring, source.spec, shard))
            self._next += 1

    def close(self) -> None:
        """Drop what has not begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
