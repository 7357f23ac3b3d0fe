"""How long steps take, and how much of that is waiting for data."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from encodeonce.train.ranks import Ranks
from encodeonce.train.step import Step


class Meter:
    """How long steps take, and how much of it is waiting for data; by `lap` since the last one."""

    def __init__(self) -> None:
        self._begun = self._lap = time.perf_counter()
        self._waited = self._waited_lap = self._idle = self._idle_lap = 0.0
        self._steps, self._tokens, self._frames = 0, 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in which the loop waits for data."""
        begun = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begun

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not of steps: validation, checkpoints."""
        begun = time.perf_counter()
        yield
        self._idle += time.perf_counter() - begun

    def add(self, step: Step) -> None:
        """A step is done."""
        self._steps, self._tokens, self._frames = (
            self._steps + 1,
            self._tokens + step.tokens,
            self._frames + step.frames,
        )

    def lap(self, ranks: Ranks) -> dict[str, float]:
        """Rates since the last lap; what is waited is the mean of the ranks."""
        now = time.perf_counter()
        seconds = max(now - self._lap - (self._idle - self._idle_lap), 1e-9)
        waited = ranks.total([self._waited - self._waited_lap])[0] / ranks.world_size
        rates = {
            "tokens_per_second": self._tokens / seconds,
            "frames_per_second": self._frames / seconds,
            "wait_share": waited / seconds,
            "seconds_per_step": seconds / max(self._steps, 1),
        }
        self._lap, self._waited_lap, self._idle_lap = now, self._waited, self._idle
        self._steps, self._tokens, self._frames = 0, 0.0, 0.0
        return rates

    @property
    def seconds(self) -> float:
        """Of steps, from the beginning."""
        return time.perf_counter() - self._begun - self._idle

    @property
    def wait_share(self) -> float:
        """Of this rank's time in steps, from the beginning."""
        return self._waited / max(self.seconds, 1e-9)
