"""Who makes the shards of a split: this process, a process for each of several devices, or the workers of a Dask cluster.

All of them are given the same tasks and give back finished shards; the process that holds the split commits them.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from encodeonce.extract.run import Run
from encodeonce.extract.stages import Live, Stages, Work
from encodeonce.extract.tasks import Finished, Ground, ShardResult, ShardTask
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    from encodeonce.extract.encode import BatchEncoder

Deliver = Callable[[Finished], None]


class Maker(ABC):
    """Makes shards for a run. A context manager: on leaving it nothing of it is at work any more.

    Attributes:
        stages: where the time went so far.
        workers: the processes that encode.
        load_seconds: of the pipeline's time, what went into loading.
        again: utterances that were encoded once more in float32.
    """

    run: Run
    stages: Stages
    workers: int = 1
    load_seconds: float = 0.0
    again: int = 0
    started: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def reset(self) -> None:
        """Begin to count anew, for another split."""
        self.stages = Stages({})
        self.load_seconds, self.again, self.started = 0.0, 0, None

    @abstractmethod
    def close(self) -> None:
        """End every worker, and let go of the encoder."""

    @abstractmethod
    def prepare(self, outputs: Sequence[Output]) -> None:
        """Load the encoder, ready for some outputs, before anything is written: what cannot be used is refused here.

        Raises:
            EncoderError: it cannot be loaded.
        """

    def encoder(self, outputs: Sequence[Output]) -> "BatchEncoder":
        """The encoder, in this process."""
        from encodeonce.extract.pipeline import in_threads

        return in_threads(self.run.work().threads, lambda: self.run.load(outputs))

    @abstractmethod
    def make(self, tasks: Sequence[ShardTask], ground: Ground, outputs: Sequence[Output], deliver: Deliver) -> None:
        """Make every shard of a split and hand each to `deliver`, which several threads may call at the same time.

        `outputs` are all that the encoder has to give.

        The first error ends it; shards delivered before it stand.
        """

    @property
    def seconds(self) -> float:
        """From the first decode until now, without loading."""
        return 0.0 if self.started is None else max(0.0, time.perf_counter() - self.started - self.load_seconds)


class Here(Maker):
    """This process makes the shards."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.reset()
        self._encoder: BatchEncoder | None = None
        self._outputs: set[str] = set()

    def prepare(self, outputs: Sequence[Output]) -> None:
        self.encoder(outputs)

    def encoder(self, outputs: Sequence[Output]) -> "BatchEncoder":
        from encodeonce.extract.pipeline import in_threads

        return in_threads(self.work.threads, lambda: self._load(outputs))

    def make(self, tasks: Sequence[ShardTask], ground: Ground, outputs: Sequence[Output], deliver: Deliver) -> None:
        from encodeonce.extract.pipeline import Pipeline

        self.stages.threads = self.work.stage_threads
        live, rate, advance = Live(self.stages), self.run.encoder.sample_rate, self.run.progress.advance

        def write(result: ShardResult) -> None:
            with self.stages.timed("write"):
                deliver(result)

        pipeline = Pipeline(
            self.run,
            ground,
            self.work,
            load=lambda: self._load(outputs),
            deliver=write,
            progress=lambda samples: advance(samples / rate, live.note()),
            stages=self.stages,
        )
        try:
            pipeline.run(tasks)
        finally:
            self.started = self.started or pipeline.started
            self.load_seconds = self.stages.seconds["load"]
            self.again += self._encoder.take_again() if self._encoder else 0

    @cached_property
    def work(self) -> Work:
        """How it is spread over this process; asked where there is something to do, since torch has to say."""
        return self.run.work()

    def close(self) -> None:
        self._encoder, self._outputs = None, set()

    def _load(self, outputs: Sequence[Output]) -> "BatchEncoder":
        """The encoder, loaded once for outputs that it has given before."""
        wanted = {output.what for output in outputs}
        if self._encoder is None or not wanted <= self._outputs:
            self._encoder, self._outputs = self.run.load(outputs), wanted
        return self._encoder
