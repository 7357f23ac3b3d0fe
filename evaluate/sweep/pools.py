"""Where runs are worked on: here, one after the other; or by the workers of a Dask cluster, each one run at a time."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.sweep.work import Order, State, work
from encodeonce.store.signals import deaf_to_interrupts

CONNECT_SECONDS = 30.0
WORKER_SECONDS = 300.0
"""How long a cluster may take to bring its first worker up."""


class Pool(Protocol):
    """Takes orders."""

    def room(self) -> int:
        """How many runs it can work on at once, now."""
        ...

    def submit(self, order: Order, stop: Path) -> Future[State]:
        """Begin a run."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Here:
    """This machine, one run after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "sweep")

    def room(self) -> int:
        """One."""
        return 1

    def submit(self, order: Order, stop: Path) -> Future[State]:
        """Begin a run."""
        return self._executor.submit(work, order, stop)

    def close(self) -> None:
        """Wait for what runs."""
        self._executor.shutdown()


class Cluster:
    """The workers of a Dask cluster; a worker that dies is Dask's to notice, and its run goes on with another.

    Args:
        address: of a scheduler whose workers see the same files under the same paths; `local` makes workers here.
        environments: of local workers, one for each: a GPU that it sees, or its number of threads.

    Raises:
        EvaluationError: dask.distributed is missing, or no scheduler or worker is there.
    """

    def __init__(self, address: str, environments: Sequence[Mapping[str, str]] = ({},)) -> None:
        self._cluster: Any = None
        try:
            import distributed
        except ImportError as error:
            raise EvaluationError("--dask needs dask.distributed: pip install 'encodeonce[dask]'") from error
        try:
            if address == "local":
                self._cluster = _local(environments)
            self._client = distributed.Client(self._cluster or address, timeout=CONNECT_SECONDS, set_as_default=False)
            self._client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except (OSError, TimeoutError, ValueError) as error:
            raise EvaluationError(
                f"--dask {address}: no scheduler with a worker answers ({' '.join(str(error).split())}); give local, or the address "
                f"that dask scheduler prints, such as tcp://host:8786, and start workers with dask worker {address}"
            ) from error
        self._executor: Executor = self._client.get_executor(pure=False)

    def room(self) -> int:
        """As many as there are workers now."""
        return max(1, len(self._client.nthreads()))

    def submit(self, order: Order, stop: Path) -> Future[State]:
        """Give a run to a worker that has none."""
        return self._executor.submit(work_alone, order, stop)

    def close(self) -> None:
        """Let go of the workers; those of `local` end."""
        with suppress(OSError, TimeoutError):
            self._client.close()
        if self._cluster is not None:
            self._cluster.close()


def pool_of(dask: str | None, gpus: Sequence[str] = (), workers: int | None = None) -> Callable[[], Pool]:
    """What the options of the command line ask for, to be made when there is something to do.

    Several GPUs or workers are a local cluster.

    Raises:
        EvaluationError: the options contradict each other.
    """
    if gpus and workers is not None:
        raise EvaluationError("--gpus gives a worker to each GPU, and --workers is for processors: take one of them")
    if dask not in (None, "local") and (gpus or workers is not None):
        raise EvaluationError(
            f"--gpus and --workers are for workers of this machine, and --dask {dask} brings its own: start them with "
            f"CUDA_VISIBLE_DEVICES, one for each GPU"
        )
    if dask not in (None, "local"):
        return partial(Cluster, str(dask))
    if gpus:
        return partial(Cluster, "local", [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus])
    if dask is None and workers is None:
        return Here
    count = workers or 1
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // count))
    return partial(Cluster, "local", [{"OMP_NUM_THREADS": threads}] * count)


_alone = Lock()


def work_alone(order: Order, stop: Path) -> State:
    """In a worker: one run at a time, however many threads it has."""
    with _alone:
        return work(order, stop)


def _local(environments: Sequence[Mapping[str, str]]) -> Any:
    from distributed import Nanny, Scheduler, SpecCluster

    options = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "silence_logs": logging.ERROR}
    with deaf_to_interrupts():
        return SpecCluster(
            workers={
                number: {"cls": Nanny, "options": {**options, "env": dict(environment)}}
                for number, environment in enumerate(environments)
            },
            scheduler={"cls": Scheduler, "options": {"dashboard": False, "host": "127.0.0.1"}},
            silence_logs=logging.ERROR,
        )
