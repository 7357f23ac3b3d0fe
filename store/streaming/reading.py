"""The rest of an epoch on its way: threads read some batches ahead of the one that is taken."""

import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from encodeonce.store.streaming.ahead import ShardsAhead
from encodeonce.store.streaming.batches import Batch
from encodeonce.store.streaming.epoch import Step


@dataclass(frozen=True, slots=True)
class Span:
    """What is read: an epoch from where `taken` batches of its global sequence are gone, for one of several workers of a rank."""

    epoch: int
    taken: int
    worker: int
    workers: int
    then: Callable[[Batch], Any] | None = None
    """What threads make of each batch."""
    process: int = field(default_factory=os.getpid)
    """That reads: threads do not come along into one that is forked."""


class Reading:
    """Reads steps in their order; it begins at once.

    Args:
        make: reads the batch of a step, in a thread.
        shards: told of the steps as they come.
        begin_thread: what a thread does first.
        prefetch: batches that are read beside the one that is waited for.
        afterwards: what a thread does when the last batch is under way.
    """

    def __init__(
        self,
        span: Span,
        todo: Sequence[Step],
        make: Callable[[Step], Batch],
        shards: ShardsAhead,
        begin_thread: Callable[[], None],
        threads: int,
        prefetch: int,
        afterwards: Callable[[], object],
    ) -> None:
        self.span, self._make, self._shards, self._prefetch = span, make, shards, prefetch
        self._last, self._afterwards, self.empty = len(todo) - 1, afterwards, not todo
        self._submitted = iter(enumerate(todo))
        self._ahead: deque[tuple[Step, Future[tuple[Batch, Any]]]] = deque()
        self._done: Future[object] | None = None
        self._readers = ThreadPoolExecutor(threads, "read", begin_thread)
        self._fill()

    @property
    def all_under_way(self) -> bool:
        """Whether the last batch is on its way, and what comes afterwards is done."""
        return self._done is not None and self._done.done()

    def take(self) -> tuple[Step, Batch, Any] | None:
        """The next step, its batch, and what was made of that; None after the last."""
        self._fill()
        if not self._ahead:
            return None
        step, future = self._ahead.popleft()
        return step, *future.result()

    def close(self) -> None:
        """Drop what has not begun."""
        self._shards.close()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _made(self, step: Step) -> tuple[Batch, Any]:
        batch, then = self._make(step), self.span.then
        return batch, batch if then is None else then(batch)

    def _fill(self) -> None:
        for number, step in islice(self._submitted, self._prefetch + 1 - len(self._ahead)):
            self._shards.reach(number)
            self._ahead.append((step, self._readers.submit(self._made, step)))
            if number == self._last:
                self._done = self._readers.submit(self._afterwards)
