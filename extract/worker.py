"""A process that makes shards of a split that another process holds: it encodes them, writes their files, and tells."""

import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from encodeonce.extract.cache import FileCache
from encodeonce.extract.copies import Copies
from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import Request
from encodeonce.extract.run import Run
from encodeonce.extract.tasks import Fates, Finished, Ground, ShardResult, ShardTask, StagedShard
from encodeonce.store.identity import describe_difference, differences
from encodeonce.store.layout import Output
from encodeonce.store.noise import Ratio
from encodeonce.store.objects import StorePath
from encodeonce.store.staging import Staged, stage

if TYPE_CHECKING:
    from encodeonce.extract.encode import BatchEncoder


@dataclass(frozen=True)
class Order:
    """What a worker is told once: the request, what the feature set has to be, and the outputs that the encoder gives."""

    request: Request
    identity: Mapping[str, Any]
    outputs: Sequence[Output]


@dataclass(frozen=True)
class Made:
    """What a worker tells of a shard that it made: small, whatever the shard's size.

    `seconds`, `samples` and `padded` are what its stages counted since it told last, `stage_threads` their threads; `again` counts
    the utterances that were encoded once more.
    """

    shard: int
    fates: Fates
    made: Mapping[str, Any]
    noise: Mapping[str, Sequence[Ratio]]
    folder: StorePath
    staged: Staged | None
    stage_threads: Mapping[str, int]
    seconds: Mapping[str, float]
    samples: int
    padded: int
    again: int

    def finished(self, task: ShardTask) -> Finished:
        """The shard as whoever holds the split commits it."""
        return StagedShard(task, self.made, self.fates, self.noise, self.folder, self.staged)


class ShardWorker:
    """The encoder of an order, and what it makes of tasks.

    Args:
        sharing: processes among which the machine is shared.
        alone: it encodes in one thread, of one core, since others of this process may make shards beside it.

    Raises:
        EncoderError: the encoder is not the one that the order means.
    """

    def __init__(self, order: Order, progress: Progress, sharing: int = 1, alone: bool = False) -> None:
        self.order, self.run = order, Run(order.request, progress, FileCache())
        found = list(differences(order.identity, self.run.feature_set.identity))
        if found:
            raise EncoderError(
                f"{order.request.encoder} is another encoder here than where the run was started: "
                f"{'; '.join(describe_difference(*one) for one in found)}; give every machine the same files"
            )
        self.work = self.run.work(sharing, alone)
        self._encoder: BatchEncoder | None = None
        self._copies: tuple[Mapping[int, Mapping[str, int]], Copies] | None = None
        self._loading = Lock()

    def load(self) -> "BatchEncoder":
        """The loaded encoder."""
        from encodeonce.extract.pipeline import in_threads

        with self._loading:
            if self._encoder is None:
                self._encoder = in_threads(self.work.threads, lambda: self.run.load(self.order.outputs))
            return self._encoder

    def make(
        self,
        tasks: Iterable[ShardTask],
        ground: Ground,
        deliver: Callable[[Made], None],
        progress: Callable[[int], None] = lambda samples: None,
    ) -> None:
        """Make shards; each is told to `deliver` once its files lie in the split's scratch folder."""
        from encodeonce.extract.pipeline import Pipeline
        from encodeonce.extract.stages import Stages

        self.run.find_feature_set()  # its outputs may have been written since
        stages = Stages(self.work.stage_threads)

        def count() -> dict[str, Any]:
            return stages.take() | {"again": self._encoder.take_again() if self._encoder else 0}

        def hand_on(result: ShardResult) -> None:
            folder = ground.scratch / f"{result.task.shard}-{uuid.uuid4().hex}"
            staged = None
            if result.has_files:
                with stages.timed("write"):
                    staged = stage(folder, result.task.shard, result.ordered(), result.specs, ground.attributes)
            shard, fates, threads = result.task.shard, result.fates, self.work.stage_threads
            deliver(Made(shard, fates, result.made, result.noise, folder, staged, threads, **count()))

        Pipeline(self.run, ground, self.work, self.load, hand_on, progress, stages, self._copies_from(ground)).run(
            tasks
        )

    def _copies_from(self, ground: Ground) -> Copies:
        """What may be copied; other splits are opened once."""
        with self._loading:
            if self._copies is None or self._copies[0] != ground.copy_from:
                copies = Copies(self.run.feature_set.path, ground.copy_from, self.run.progress)
                self._copies = ground.copy_from, copies
            return self._copies[1]


def order_of(run: Run, outputs: Sequence[Output], device: str | None = None) -> Order:
    """The order of a run for a worker, which may have another working directory."""
    request = run.request.at_home(
        device=device or run.request.device,
        encoder=_at_home(run.request.encoder),
        base_encoder=run.request.base_encoder and _at_home(run.request.base_encoder),
        precision=run.precision,
    )
    return Order(request, run.feature_set.identity, tuple(outputs))


def _at_home(word: str) -> str:
    """A name of an encoder whose path, where it has one, is absolute."""
    kind, colon, path = word.partition(":") if word.startswith(("onnx:", "units:")) else ("", "", word)
    return f"{kind}{colon}{os.path.abspath(path)}" if os.path.exists(path) else word
