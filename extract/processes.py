"""Several devices of one machine: a process for each, shards dealt as they ask for them, a dead one's taken over."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from threading import Lock
from typing import Any

from encodeonce.extract.encoders.base import EncoderError
from encodeonce.extract.makers import Deliver, Maker
from encodeonce.extract.progress import Progress
from encodeonce.extract.run import Run
from encodeonce.extract.stages import Live, Stages
from encodeonce.extract.tasks import Ground, ShardTask
from encodeonce.extract.worker import Made, Order, ShardWorker, order_of
from encodeonce.store.errors import StoreError
from encodeonce.store.layout import Output
from encodeonce.store.signals import deaf_to_interrupts

CLOSE_SECONDS = 5.0
DEATHS = 2
"""A shard with which this many workers died is not given to another."""


@dataclass
class _Worker:
    """A process, seen from the one that holds the split."""

    device: str
    process: BaseProcess
    pipe: Connection
    doing: dict[int, ShardTask] = field(default_factory=dict)
    idle: bool = True
    """It waits for a task, with nothing in its pipeline."""
    ready: bool = False
    """It has loaded the encoder."""
    ahead: int = 0
    """Samples that it has told of as done, in shards that are not."""
    fault: str = ""
    """What it said of its device before it ended."""


class Processes(Maker):
    """A worker process for each of some devices of this machine."""

    def __init__(self, run: Run, devices: Sequence[str]) -> None:
        self.run, self.devices, self.workers = run, list(devices), len(devices)
        self.reset()
        self._outputs: set[str] = set()
        self._told: set[str] = set()
        self._workers: list[_Worker] = []
        self._deaths: Counter[int] = Counter()

    def reset(self) -> None:
        super().reset()
        share = self.run.work(self.workers).stage_threads
        self.stages = Stages({stage: count * self.workers for stage, count in share.items()})

    def prepare(self, outputs: Sequence[Output]) -> None:
        wanted = {output.what for output in outputs}
        if self._workers and wanted <= self._outputs:
            return
        self.close()
        self._outputs = wanted
        context = multiprocessing.get_context("spawn")
        for device in self.devices:
            ours, theirs = context.Pipe()
            order = order_of(self.run, outputs, device)
            process = context.Process(target=work, args=(theirs, order, len(self.devices)), name=device, daemon=True)
            with deaf_to_interrupts():
                process.start()
            theirs.close()
            self._workers.append(_Worker(device, process, ours))
        for worker in self._workers:
            try:
                kind, value = worker.pipe.recv()
                while kind == "say":
                    self._say(worker, value)
                    kind, value = worker.pipe.recv()
            except EOFError:
                raise EncoderError(f"the worker for {worker.device} ended while it loaded{_why(worker)}") from None
            if kind != "ready":
                raise EncoderError(f"{worker.device}: {value}")
            worker.ready = True

    def make(self, tasks: Sequence[ShardTask], ground: Ground, outputs: Sequence[Output], deliver: Deliver) -> None:
        self.prepare(outputs)
        waiting, live = deque(tasks), Live(self.stages)
        for worker in self._workers:
            with suppress(OSError):  # as in _give
                worker.pipe.send(("ground", ground))
        while waiting or any(worker.doing for worker in self._workers):
            for worker in self._workers:
                if worker.idle and waiting:
                    self._give(worker, waiting)
            pipes = {worker.pipe: worker for worker in self._workers}
            for pipe in wait(list(pipes)):
                worker = pipes[pipe]  # type: ignore[index]
                try:
                    kind, value = worker.pipe.recv()
                except (EOFError, OSError):
                    self._bury(worker, waiting)
                    continue
                if kind == "next":
                    self._give(worker, waiting)
                elif kind == "made":
                    self._take(worker, value, deliver)
                else:
                    self._hear(worker, kind, value, live)

    def _give(self, worker: _Worker, waiting: deque[ShardTask]) -> None:
        """Give a worker the next task. Where none waits, or the others could do it sooner, it finishes what it has, and is idle."""
        share = -(-len(waiting) // len(self._workers))
        task = waiting.popleft() if len(worker.doing) < share or (waiting and not worker.doing) else None
        if task is not None:
            worker.doing[task.shard] = task
            worker.idle = False
        with suppress(OSError):  # that it is dead shows when it is heard next
            worker.pipe.send(("task", task))

    def _take(self, worker: _Worker, made: Made, deliver: Deliver) -> None:
        task = worker.doing.pop(made.shard)
        worker.ahead -= task.samples
        deliver(made.finished(task))
        self.stages.take_in(made.seconds, made.samples, made.padded)
        self.again += made.again

    def _hear(self, worker: _Worker, kind: str, value: Any, live: Live) -> None:
        match kind:
            case "idle":
                worker.idle = True
            case "started":
                self.started = min(value, self.started or value)
            case "advance":
                worker.ahead += value
                self.run.progress.advance(value / self.run.encoder.sample_rate, live.note())
            case "say":
                self._say(worker, value)
            case "failed":
                worker.fault = value
            case "error":
                raise EncoderError(f"{worker.device}: {value}")

    def _say(self, worker: _Worker, line: str) -> None:
        """Tell what a worker says; what all of them say, once."""
        if line not in self._told:
            self._told.add(line)
            self.run.progress.say(f"{worker.device}: {line}")

    def _bury(self, worker: _Worker, waiting: deque[ShardTask]) -> None:
        """A worker has died: its shards go to the others, before those that nobody began."""
        self._workers.remove(worker)
        worker.process.join()
        self._deaths.update(worker.doing.keys())
        fatal = [shard for shard in worker.doing if self._deaths[shard] >= DEATHS]
        if fatal:
            way_out = "" if worker.fault else ": try a smaller --batch-seconds"  # which a fault says
            raise EncoderError(
                f"shard {fatal[0]} ended {DEATHS} workers, the last on {worker.device}{_why(worker)}; everything finished so far "
                f"is kept{way_out}"
            )
        if not self._workers:
            raise EncoderError(f"every worker has ended, the last on {worker.device}{_why(worker)}")
        self.run.progress.advance(-worker.ahead / self.run.encoder.sample_rate)
        waiting.extendleft(sorted(worker.doing.values(), key=lambda task: -task.shard))
        self.run.progress.say(
            f"The worker for {worker.device} has ended{_why(worker)}; the others take over its {len(worker.doing)} shards"
        )

    def close(self) -> None:
        for worker in self._workers:
            with suppress(OSError):
                worker.pipe.send(("stop", None))
            worker.pipe.close()
            if worker.doing or not worker.ready:
                worker.process.terminate()
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers = []


def _why(worker: _Worker) -> str:
    """How a worker's process ended."""
    if worker.fault:
        return f" ({worker.fault})"
    worker.process.join(1)
    code = worker.process.exitcode
    if code is None:
        return ""
    if code < 0:
        name = signal.Signals(-code).name
        return f" ({name}{', as when memory runs out' if name == 'SIGKILL' else ''})"
    return f" (exit status {code})"


class _Relay(Progress):
    """Lines of a worker, told by the process that holds the split."""

    def __init__(self, tell: "_Tell") -> None:
        super().__init__()
        self._tell = tell

    def _print(self, line: str) -> None:
        self._tell("say", line)


class _Tell:
    """Sends messages to the process that holds the split, from any thread."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, Lock()

    def __call__(self, kind: str, value: Any = None) -> None:
        with self._lock:
            self._pipe.send((kind, value))


def work(pipe: Connection, order: Order, sharing: int) -> None:
    """What a worker process does: load, then make shards until it is told to stop, or nobody listens any more."""
    from encodeonce.extract.encode import DeviceError

    tell = _Tell(pipe)
    try:
        worker = ShardWorker(order, _Relay(tell), sharing)
        worker.load()
        tell("ready")
        _serve(pipe, tell, worker)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the other side is gone; threads may be in the middle of something
    except DeviceError as error:
        tell("failed", str(error))  # and ends, as one that died: the other devices take over
    except (EncoderError, StoreError) as error:
        tell("error", str(error))
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        tell("error", f"{type(error).__name__}: {error}")


def _serve(pipe: Connection, tell: _Tell, worker: ShardWorker) -> None:
    ground: Ground | None = None
    while True:
        kind, value = pipe.recv()
        if kind == "stop":
            return
        if kind == "ground":
            ground = value
        elif value is not None:
            assert ground is not None
            worker.make(
                _tasks(pipe, tell, value),
                ground,
                lambda made: tell("made", made),
                lambda samples: tell("advance", samples),
            )
            tell("idle")


def _tasks(pipe: Connection, tell: _Tell, first: ShardTask) -> Iterator[ShardTask]:
    """The tasks that come, until none waits for now."""
    tell("started", time.perf_counter())  # Linux: one clock for all processes of a machine
    task: ShardTask | None = first
    while task is not None:
        yield task
        tell("next")
        kind, task = pipe.recv()
        if kind == "stop":
            raise EOFError
