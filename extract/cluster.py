"""Many machines: shards as tasks of a Dask cluster, whose workers write straight to the store.

The process that was started holds the split, deals the tasks and commits what comes back. A worker that dies is Dask's to
notice: its tasks run on another.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from encodeonce.extract.encoders.base import EncoderError, first_line
from encodeonce.extract.makers import Deliver, Maker
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import RequestError
from encodeonce.extract.run import Run
from encodeonce.extract.stages import Live
from encodeonce.extract.tasks import Ground, ShardTask
from encodeonce.extract.worker import Made, Order, ShardWorker, order_of
from encodeonce.store.errors import StoreError
from encodeonce.store.layout import Output
from encodeonce.store.signals import deaf_to_interrupts

if TYPE_CHECKING:
    from distributed import Client

CONNECT_SECONDS = 10.0
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
        self._told_of = 0

    def __enter__(self) -> Self:
        if self.address == "local":
            if self.run.find_device() != "cpu":
                raise RequestError(
                    f"--dask local is for processors, and --device {self.run.request.device} is {self.run.find_device()} here; take "
                    f"--device all for the GPUs of this machine, or --device cpu"
                )
        else:
            self._client = self._connect()
        return self

    def prepare(self, outputs: Sequence[Output]) -> None:
        with self._told("while it loaded the encoder"):
            client = self._client = self._client or self._local()
            try:
                client.wait_for_workers(1, timeout=WORKER_SECONDS)
            except TimeoutError:
                raise RequestError(
                    f"--dask {self.address}: the scheduler has no worker, and none came in {WORKER_SECONDS:.0f} s; start workers "
                    f"(dask worker {self.address}) where encodeonce is installed"
                ) from None
            order = order_of(self.run, outputs)
            places = {"pure": False, "allow_other_workers": True}
            threads = client.nthreads()
            client.gather([client.submit(load, order, workers=[worker], **places) for worker in threads])
            self._tell_workers(threads.values())

    def _tell_workers(self, threads: Collection[int]) -> None:
        if len(threads) != self._told_of:
            self._told_of = len(threads)
            self.run.progress.say(
                f"Workers of the Dask cluster: {len(threads)}, with {sum(threads)} threads; others may join while it runs"
            )

    def _dask(self) -> Any:
        try:
            import distributed
        except ImportError as error:
            raise RequestError("--dask needs dask.distributed: pip install 'encodeonce[dask]'") from error
        return distributed

    def _local(self) -> "Client":
        dask = self._dask()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with deaf_to_interrupts():
            self._cluster = dask.LocalCluster(
                n_workers=cores,
                threads_per_worker=1,
                processes=True,
                dashboard_address=None,
                silence_logs=logging.ERROR,
            )
        return dask.Client(self._cluster, set_as_default=False)

    def _connect(self) -> "Client":
        dask = self._dask()
        try:
            # First by hand: a client that finds nobody is left behind half built, and complains a minute later.
            asyncio.run(_greet(self.address))
            return dask.Client(self.address, timeout=CONNECT_SECONDS, set_as_default=False)
        except Exception as error:  # an address that is none, or is of something else, shows in many kinds
            raise RequestError(
                f"--dask {self.address}: no scheduler answers there ({first_line(error)}); give local, or the address that "
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
            room = self._room(client)
            while waiting and len(running) < room:
                task = waiting.pop()
                future = client.submit(make, order, task, ground, _unseen(task), pure=False, priority=-task.shard)
                running[future.key] = task
                done.add(future)

        with self._told("while it made shards"):
            submit()
        for future in done:
            task = running.pop(future.key)
            with self._told(f"with shard {task.shard}"):
                made: Made = future.result()
                future.release()
                submit()
            deliver(made.finished(task))
            self.stages.take_in(made.seconds, made.samples, made.padded)
            self.again += made.again
            self.run.progress.advance(task.samples / self.run.encoder.sample_rate, live.note())

    def _room(self, client: "Client") -> int:
        """How many tasks the scheduler is given. Workers come and go: those there are count."""
        threads = list(client.nthreads().values())
        self.workers = max(self.workers, len(threads))
        total = max(1, sum(threads))
        most = max(total, self.stages.threads.get("encode", 1))
        self.stages.threads = dict.fromkeys(("decode", "encode", "keep", "write"), most)
        return AHEAD * total

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Errors of Dask, and of workers, as ours.

        Raises:
            EncoderError: workers died, one failed, or the scheduler is gone.
        """
        from concurrent.futures import CancelledError

        kept = "everything finished so far is kept"
        try:
            yield
        except (EncoderError, RequestError, StoreError):
            raise
        except (CancelledError, OSError, TimeoutError) as error:
            raise EncoderError(
                f"the scheduler at {self.address} is gone ({first_line(error)}); {kept}: run again"
            ) from error
        except Exception as error:
            if type(error).__name__ == "KilledWorker":
                raise EncoderError(
                    f"workers died again and again {doing}; {kept}: look at the worker's log (memory?), try a smaller --batch-seconds"
                ) from error
            raise EncoderError(
                f"a worker failed {doing}: {type(error).__name__}: {first_line(error)}; {kept}"
            ) from error

    def close(self) -> None:
        with suppress(OSError, TimeoutError):
            if self._client is not None:
                self._client.close()
        if self._cluster is not None:
            self._cluster.close()
        self._client = self._cluster = None


def _unseen(task: ShardTask) -> frozenset[str]:
    """The utterances whose audio is not there, seen from here."""
    return frozenset(name for name, utterance in task.utterances.items() if not utterance.audio.exists())


async def _greet(address: str) -> None:
    """Shake hands with a scheduler. One that is being started has some seconds; what is none may take them and say nothing."""
    from distributed import Security
    from distributed.core import connect

    async with asyncio.timeout(CONNECT_SECONDS + 1):
        comm = await connect(address, CONNECT_SECONDS, **Security().get_connection_args("client"))
        await comm.close()


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


def make(order: Order, task: ShardTask, ground: Ground, unseen: frozenset[str]) -> Made:
    """Make one shard, in as many threads as a thread of the worker stands for: one.

    Raises:
        EncoderError: this machine does not see audio that the run sees (all but `unseen`): its failures would be no failures.
    """
    missing = sorted(_unseen(task) - unseen)
    if missing:
        raise EncoderError(
            f"a worker on {socket.gethostname()} does not see {task.utterances[missing[0]].audio}, which is there for the run; give "
            f"every machine the audio under the same paths, or take that worker away"
        )
    made: list[Made] = []
    worker_for(order).make([task], ground, made.append)
    return made[0]
