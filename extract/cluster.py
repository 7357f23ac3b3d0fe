"""Many machines: shards as tasks of a Dask cluster, whose workers write straight to the store.

The process that was started holds the split, deals the tasks and commits what comes back. A worker that dies is Dask's to
notice: its tasks run on another. One whose GPU fails is taken out of the cluster, and others take over.
"""

import asyncio
import logging
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Lock
from typing import TYPE_CHECKING, Any, Self, TypeVar

from encodeonce.extract.encoders.base import EncoderError, first_line
from encodeonce.extract.makers import Deliver, Maker
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import RequestError
from encodeonce.extract.run import Run, cores
from encodeonce.extract.stages import WORK, Live
from encodeonce.extract.tasks import Ground, ShardTask
from encodeonce.extract.worker import Made, Order, ShardWorker, order_of
from encodeonce.store.errors import StoreError
from encodeonce.store.layout import Output
from encodeonce.store.signals import deaf_to_interrupts

if TYPE_CHECKING:
    from distributed import Client, Future

CONNECT_SECONDS = 10.0
WORKER_SECONDS = 300.0
"""How long a cluster may be without any worker: a queue of jobs can be slow."""
LOOK_SECONDS = 5.0
"""After so long without news of a task, it is asked which workers there are."""
TELL_SECONDS = 1.0
"""Between what a worker tells of a shard that it is at."""
AHEAD = 2
"""Tasks that are with the scheduler, by thread of the workers."""
KEPT = "everything finished so far is kept"
FAULTS = 2
"""So many GPUs may fail with a shard before that ends the run."""

News = TypeVar("News")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Fault:
    """What came of a task in place of its result: the worker's GPU failed."""

    why: str


class Cluster(Maker):
    """The workers of a Dask cluster; `local` makes one of this machine, a worker of one thread for each core."""

    def __init__(self, run: Run, address: str) -> None:
        self.run, self.address = run, address
        self.reset()
        self._client: Client | None = None
        self._cluster: Any = None
        self._told_of = 0
        self._last_seen = 0.0
        self._stage_threads: dict[str, Mapping[str, int]] = {}

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
            self._last_seen, order = time.monotonic(), order_of(self.run, outputs)
            places = {"pure": False, "allow_other_workers": True}
            done: Queue[Future] = Queue()
            loads = [client.submit(load, order, workers=[worker], **places) for worker in client.nthreads()]
            for future in loads:
                future.add_done_callback(done.put)
            for _ in loads:
                worker, fault = self._result(self._next(done, lambda: self._look(client)), client)
                if fault is not None:
                    self._take_out(worker, fault, client)
            self._look(client)

    def _dask(self) -> Any:
        try:
            import distributed
        except ImportError as error:
            raise RequestError("--dask needs dask.distributed: pip install 'encodeonce[dask]'") from error
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # that a scheduler is gone is told in a line
        return distributed

    def _local(self) -> "Client":
        dask = self._dask()
        with deaf_to_interrupts():
            self._cluster = dask.LocalCluster(
                n_workers=cores(),
                threads_per_worker=1,
                processes=True,
                memory_limit=0,  # Dask would end a worker with more than its share of the memory, free or not
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
        self.prepare(outputs)
        client, order = self._client, order_of(self.run, outputs)
        assert client is not None
        self.started = self.started or time.perf_counter()
        waiting = list(reversed(tasks))
        running: dict[Any, ShardTask] = {}
        faults: Counter[int] = Counter()
        done = {task.shard: 0 for task in tasks}  # samples that are done, of shards that are not
        heard: Queue[Future | tuple[int, int]] = Queue()
        topic, live = f"encodeonce-{uuid.uuid4().hex}", Live(self.stages)

        def submit() -> None:
            room = self._look(client)
            while waiting and len(running) < room:
                task = waiting.pop()
                future = client.submit(
                    make, order, task, ground, _unseen(task), topic, pure=False, priority=-task.shard
                )
                running[future.key] = task
                future.add_done_callback(heard.put)

        def advance(shard: int, samples: int) -> None:
            more, done[shard] = samples - done[shard], samples  # fewer, where another worker begins anew
            self.run.progress.advance(more / self.run.encoder.sample_rate, live.note())

        with self._told("while it made shards"):
            client.subscribe_topic(topic, lambda event: heard.put(tuple(event[1])))
            submit()
        while running:
            with self._told("while it made shards"):
                news = self._next(heard, submit)
            if isinstance(news, tuple):
                if news[0] in done:
                    advance(*news)
                continue
            task = running.pop(news.key)
            with self._told(f"with shard {task.shard}"):
                worker, made = self._result(news, client)
                news.release()
                if isinstance(made, Fault):
                    faults[task.shard] += 1
                    self._take_out(worker, made, client, last=faults[task.shard] == FAULTS)
                    waiting.append(task)
                else:
                    self._stage_threads[worker] = made.stage_threads
                submit()
            if isinstance(made, Fault):
                advance(task.shard, 0)
                continue
            deliver(made.finished(task))
            self.stages.take_in(made.seconds, made.samples, made.padded)
            self.again += made.again
            advance(task.shard, task.samples)
            del done[task.shard]
        client.unsubscribe_topic(topic)

    def _next(self, heard: Queue[News], look: Callable[[], object]) -> News:
        """What is heard next; while nothing is, `look` is called now and then."""
        while True:
            with suppress(Empty):
                return heard.get(timeout=LOOK_SECONDS)
            look()

    def _result(self, future: "Future", client: "Client") -> Any:
        """The result of a task that is done. Where its worker died before it was fetched, another does it again."""
        while True:
            with suppress(TimeoutError):
                return future.result(LOOK_SECONDS)
            self._look(client)

    def _take_out(self, worker: str, fault: Fault, client: "Client", last: bool = False) -> None:
        """Take a worker whose GPU failed out of the cluster.

        Raises:
            EncoderError: the other workers are not to be tried: this was the `last`, or there are none.
        """
        there = set(client.nthreads())
        if last or there <= {worker}:
            why = "another GPU failed with the same shard before" if last else "no other worker is there"
            raise EncoderError(f"{fault.why}; {why}; {KEPT}")
        if worker in there:  # else another of its threads has told of it
            self.run.progress.say(f"{fault.why}; the worker is taken out of the cluster, and the others take over")
            client.retire_workers([worker], close_workers=True)

    def _look(self, client: "Client") -> int:
        """Look which workers there are, and tell where they are more or fewer; gives how many tasks the scheduler is to have.

        Raises:
            EncoderError: there has been none for `WORKER_SECONDS`.
        """
        threads = client.nthreads()
        self.workers = max(self.workers, len(threads))
        for stage in WORK:
            there = sum(self._stage_threads.get(worker, {}).get(stage, 1) * count for worker, count in threads.items())
            self.stages.threads[stage] = max(there, self.stages.threads.get(stage, 1))
        total, now = sum(threads.values()), time.monotonic()
        if threads:
            self._last_seen = now
        if len(threads) != self._told_of:
            self._told_of = len(threads)
            self.run.progress.say(
                f"Workers of the Dask cluster: {len(threads)}, with {total} threads; others may join while it runs"
                if threads
                else f"No worker of the Dask cluster is left; waiting {WORKER_SECONDS:.0f} s for others (dask worker {self.address})"
            )
        if now - self._last_seen > WORKER_SECONDS:
            raise EncoderError(
                f"every worker of the Dask cluster is gone, and none came in {WORKER_SECONDS:.0f} s; everything finished so far is "
                f"kept: start workers (dask worker {self.address}) and run again"
            )
        return AHEAD * max(1, total)

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Errors of Dask, and of workers, as ours.

        Raises:
            EncoderError: workers died, one failed, or the scheduler is gone.
        """
        from concurrent.futures import CancelledError

        try:
            yield
        except (EncoderError, RequestError, StoreError):
            raise
        except (CancelledError, OSError, TimeoutError) as error:
            raise EncoderError(
                f"the scheduler at {self.address} is gone ({first_line(error)}); {KEPT}: run again"
            ) from error
        except Exception as error:
            if type(error).__name__ == "KilledWorker":
                raise EncoderError(
                    f"workers died again and again {doing}; {KEPT}: look at the worker's log (memory?), try a smaller --batch-seconds"
                ) from error
            raise EncoderError(
                f"a worker failed {doing}: {type(error).__name__}: {first_line(error)}; {KEPT}"
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


def load(order: Order) -> tuple[str, Fault | None]:
    """Load the encoder; gives the worker's address, and whether its GPU failed."""

    def work() -> None:
        worker_for(order).load()

    return _carefully(work)


def make(order: Order, task: ShardTask, ground: Ground, unseen: frozenset[str], topic: str) -> tuple[str, Made | Fault]:
    """Make one shard, in as many threads as a thread of the worker stands for: one. Gives the worker's address, too.

    How many of its samples are done is told under a topic of the scheduler.

    Raises:
        EncoderError: this machine does not see audio that the run sees (all but `unseen`): its failures would be no failures.
    """
    from distributed import get_worker

    missing = sorted(_unseen(task) - unseen)
    if missing:
        raise EncoderError(
            f"a worker on {socket.gethostname()} does not see {task.utterances[missing[0]].audio}, which is there for the run; give "
            f"every machine the audio under the same paths, or take that worker away"
        )
    worker = get_worker()
    done, told_at = 0, time.monotonic()

    def tell(samples: int) -> None:
        nonlocal done, told_at
        done += samples
        if time.monotonic() - told_at > TELL_SECONDS:
            told_at = time.monotonic()
            worker.log_event(topic, (task.shard, done))

    def work() -> Made:
        made: list[Made] = []
        worker_for(order).make([task], ground, made.append, tell)
        return made[0]

    return _carefully(work)


def _carefully(work: Callable[[], Done]) -> tuple[str, Done | Fault]:
    """The worker's address, and what `work` gives, or how its GPU failed.

    Raises:
        EncoderError: the encoder, a file, a disk or an object store failed; the message says on which machine. (An OSError that
            comes to the run as one is Dask's own.)
    """
    from distributed import get_worker
    from encodeonce.extract.encode import DeviceError

    address, failed = get_worker().address, f"a worker on {socket.gethostname()} failed"
    try:
        return address, work()
    except DeviceError as error:
        return address, Fault(f"{failed}: {error}")
    except (OSError, EncoderError, StoreError) as error:
        raise EncoderError(f"{failed}: {error}") from error
