"""Many machines: shards as tasks of a Dask cluster, whose workers write straight to the store.

The process that was started holds the split, deals the tasks and commits what comes back. A worker that dies is Dask's to
notice: its tasks run on another.
"""

import logging
import os
import time
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.makers import Deliver, Maker
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import RequestError
from encodeonce.extract.run import Run
from encodeonce.extract.stages import Live
from encodeonce.extract.tasks import Ground, ShardTask
from encodeonce.extract.worker import Made, Order, ShardWorker, order_of
from encodeonce.store.layout import Output

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_SECONDS = 30.0
WORKER_SECONDS = 300.0
"""How long a cluster may take to bring its first worker up: a queue of jobs can be slow."""
AHEAD = 2
"""Tasks that are with the scheduler, by thread of the workers."""


class Cluster(Maker):
    """The workers of a Dask cluster; `local` makes one of this machine, a worker of one thread for each core."""

    def __init__(self, run: Run, address: str) -> None:
        self.run, self.address = run, address
        self.reset()
        self._client: Client | None = None
        self._cluster: Any = None

    def __enter__(self) -> Self:
        self._client = self._connect()
        try:
            self._await_workers(self._client)
        except BaseException:
            self.close()
            raise
        return self

    def prepare(self, outputs: Sequence[Output]) -> None:
        assert self._client is not None
        self._resize()
        _result(self._client.submit(load, order_of(self.run, outputs), pure=False), "while it loaded the encoder")

    def _await_workers(self, client: "Client") -> None:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError:
            raise RequestError(
                f"--dask {self.address}: the scheduler has no worker, and none came in {WORKER_SECONDS:.0f} s; start workers "
                f"(dask worker {self.address}) where encodeonce is installed"
            ) from None

    def _connect(self) -> "Client":
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise RequestError("--dask needs dask.distributed: pip install 'encodeonce[dask]'") from error
        if self.address == "local":
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            self._cluster = LocalCluster(
                n_workers=cores,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.ERROR,
            )
            return Client(self._cluster, set_as_default=False)
        try:
            return Client(self.address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise RequestError(
                f"--dask {self.address}: no scheduler answers there ({str(error).splitlines()[0]}); give local, or the address that "
                f"dask scheduler prints, such as tcp://host:8786"
            ) from error

    def make(self, tasks: Sequence[ShardTask], ground: Ground, outputs: Sequence[Output], deliver: Deliver) -> None:
        from distributed import as_completed

        self.prepare(outputs)
        client, order = self._client, order_of(self.run, outputs)
        assert client is not None
        self.started = self.started or time.perf_counter()
        waiting = list(reversed(tasks))
        running: dict[Any, ShardTask] = {}
        done, live = as_completed(loop=client.loop), Live(self.stages)

        def submit() -> None:
            room = self._room()
            while waiting and len(running) < room:
                task = waiting.pop()
                future = client.submit(make, order, task, ground, pure=False, priority=-task.shard)
                running[future.key] = task
                done.add(future)

        submit()
        for future in done:
            task = running.pop(future.key)
            made: Made = _result(future, f"with shard {task.shard}")
            deliver(made.finished(task))
            self.stages.take_in(made.seconds, made.samples, made.padded)
            self.again += made.again
            self.run.progress.advance(task.samples / self.run.encoder.sample_rate, live.note())
            future.release()
            submit()

    def _room(self) -> int:
        self._resize()
        return AHEAD * max(1, sum(self._client.nthreads().values())) if self._client else 1

    def _resize(self) -> None:
        """Workers come and go: count those there are."""
        threads = list(self._client.nthreads().values()) if self._client else []
        self.workers = max(self.workers, len(threads))
        total = max(1, sum(threads))
        self.stages.threads = dict.fromkeys(("decode", "encode", "keep", "write"), total)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._cluster is not None:
            self._cluster.close()
        self._client = self._cluster = None


def _result(future: "Future", doing: str) -> Any:
    from distributed import KilledWorker

    try:
        return future.result()
    except KilledWorker as error:
        raise EncoderError(
            f"workers died again and again {doing}, the last {error.last_worker.address}; everything finished so far is kept: "
            f"look at the worker's log (memory?), try a smaller --batch-seconds"
        ) from error


# What follows runs in the workers.

_workers: dict[str, ShardWorker] = {}
_lock = Lock()


def worker_for(order: Order) -> ShardWorker:
    """The worker of this process for an order; an encoder is loaded once."""
    key = repr((order.identity, order.outputs, order.request))
    with _lock:
        if key not in _workers:
            _workers.clear()  # the encoder of an earlier run
            _workers[key] = ShardWorker(order, Progress(quiet=True), alone=True)
        return _workers[key]


def load(order: Order) -> None:
    """Load the encoder."""
    worker_for(order).load()


def make(order: Order, task: ShardTask, ground: Ground) -> Made:
    """Make one shard, in as many threads as a thread of the worker stands for: one."""
    made: list[Made] = []
    worker_for(order).make([task], ground, made.append)
    return made[0]
