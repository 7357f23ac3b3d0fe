"""Runs a sweep: what is done is skipped, what was killed goes on, what fails is kept apart and the others go on."""

import json
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encodeonce.evaluate.sweep.pools import Pool
from encodeonce.evaluate.sweep.work import FAILED, KILL, TRAIN, WORKER, Order, State, holder, last_object, tail
from encodeonce.store.files import atomic_write, make_folder, read_json
from encodeonce.store.locks import lock
from encodeonce.train.interrupts import Interrupts
from encodeonce.train.progress import span

FAILURES, WORKING, STOP = "failures.jsonl", ".sweep", ".stop"
TICK_SECONDS = 0.5
TELL_SECONDS = 15.0
CLOSE_SECONDS = 10.0

Tell = Callable[[str], object]


@dataclass
class Swept:
    """How a sweep went: names of runs."""

    done: list[str] = field(default_factory=list)
    """Now; those of earlier are in `before`."""
    before: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    """Now, or earlier and not tried again."""
    interrupted: bool = False


def sweep(
    orders: Sequence[Order],
    folder: Path,
    pool: Callable[[], Pool],
    tell: Tell,
    retry_failed: bool = False,
    changed: Callable[[], object] = lambda: None,
) -> Swept:
    """Work on what is left of some runs.

    Args:
        folder: of the sweep; failures.jsonl is kept there.
        pool: makes where they are worked on, if there is something to do.
        retry_failed: try again what failed earlier.
        changed: is called when a run is done or has failed.

    Raises:
        StoreError: another process sweeps there, or the folder cannot be written.
    """
    folder = folder.absolute()
    make_folder(folder)
    with lock(folder / WORKING):
        (folder / STOP).unlink(missing_ok=True)
        swept = Swept(before=[order.name for order in orders if order.is_done()])
        left = [order for order in orders if not order.is_done()]
        if not retry_failed:
            swept.failed = [order.name for order in left if _given_up(order)]
            left = [order for order in left if order.name not in swept.failed]
        tell(_begun(len(orders), swept, len(left)))
        try:
            if left:
                _Working(left, folder, tell, swept, changed).run(pool)
        finally:
            (folder / STOP).unlink(missing_ok=True)
            _write_failures(folder, orders)
    return swept


@dataclass(frozen=True)
class _Begun:
    """A run at work.

    Attributes:
        place: what lines about it begin with.
        sizes: of its steps' logs when it was begun, by step: what is below is of an earlier time.
    """

    order: Order
    place: str
    at: float
    sizes: Mapping[str, int]


class _Working:
    """A pool at work."""

    def __init__(
        self, orders: Sequence[Order], folder: Path, tell: Tell, swept: Swept, changed: Callable[[], object]
    ) -> None:
        self.waiting, self.total, self.number = deque(orders), len(orders), 0
        self.stop, self.tell, self.swept, self.changed = folder / STOP, tell, swept, changed
        self.running: dict[Future[State], _Begun] = {}
        self.last_told, self.last_lines = time.monotonic(), set[str]()

    def run(self, make: Callable[[], Pool]) -> None:
        with Interrupts() as interrupts:
            pool = make()
            try:
                while self.running or (self.waiting and not self.stop.exists()):
                    while self.waiting and len(self.running) < pool.room() and not self.stop.exists():
                        self._begin(pool)
                    done, _ = wait(self.running, TICK_SECONDS, FIRST_COMPLETED)
                    for future in done:
                        self._end(future)
                    if interrupts.met and not self.stop.exists():
                        self.stop.touch()
                        self.tell("Stopping: what runs ends after its step, and is kept; Ctrl-C again kills it")
                    self._tick()
            except KeyboardInterrupt:
                self.stop.write_text(KILL)
                raise
            finally:
                self.stop.touch()  # whatever ended this, nothing that still runs is left to itself
                wait(self.running, CLOSE_SECONDS)
                pool.close()
            self.swept.interrupted = interrupts.met

    def _begin(self, pool: Pool) -> None:
        order = self.waiting.popleft()
        self.number += 1
        place = f"[{self.number} of {self.total}] {order.name}"
        if other := holder(order.folder):
            self.tell(f"{place}: {other} still works on it, left by a sweep that was killed; waiting for it to end")
        else:
            first = next((step.name for step in order.steps if not step.is_done()), "nothing")
            self.tell(f"{place}: {first}")
        sizes = {step.name: step.log.stat().st_size if step.log.exists() else 0 for step in order.steps}
        self.running[pool.submit(order, self.stop)] = _Begun(order, place, time.monotonic(), sizes)

    def _end(self, future: Future[State]) -> None:
        begun = self.running.pop(future)
        order, place = begun.order, begun.place
        error = future.exception()
        if error is not None:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            with atomic_write(order.folder / FAILED) as file:
                line = {"run": order.name, "step": WORKER, "status": None, "reason": reason, "log": None, "tail": []}
                file.write(json.dumps({"failures": [line]}).encode())
        state = "failed" if error is not None else future.result()
        if state == "interrupted":
            self.tell(f"{place}: stopped, and kept")
            return
        (self.swept.done if state == "done" else self.swept.failed).append(order.name)
        self.tell(f"{place}: {_outcome(order, state)}, {span(time.monotonic() - begun.at)}")
        self.changed()

    def _tick(self) -> None:
        """Now and then, what the logs of the running ones say that is new."""
        now = time.monotonic()
        if now - self.last_told < TELL_SECONDS:
            return
        lines = []
        for begun in self.running.values():
            step = next((step for step in begun.order.steps if not step.is_done()), None)
            if step and (said := tail(step.log, 1, begun.sizes[step.name])):
                lines.append(f"{begun.place}, {step.name}: {said[-1].strip()}")
        for line in lines:
            if line not in self.last_lines:
                self.tell(line)
        self.last_told, self.last_lines = now, set(lines)


def failures_of(order: Order) -> list[dict[str, Any]]:
    """What failed of a run, step by step; nothing of what is done since, or no longer asked for."""
    path, left = order.folder / FAILED, {step.log.name for step in order.steps if not step.is_done()}
    failures = read_json(path)["failures"] if left and path.exists() else []
    return [one for one in failures if one["log"] is None or Path(one["log"]).name in left]


def _given_up(order: Order) -> bool:
    """Whether everything that is left of a run has failed, or rests upon what has."""
    failures = failures_of(order)
    failed = {Path(one["log"]).name for one in failures if one["log"] is not None}
    return any(one["step"] in (TRAIN, WORKER) for one in failures) or all(
        step.is_done() or step.log.name in failed for step in order.steps
    )


def trained(order: Order) -> dict[str, Any]:
    """What train-adapter said at its end; empty where it has not come there, or there is nothing to train."""
    return next((last_object(step.output) for step in order.steps if step.name == TRAIN), {})


def _outcome(order: Order, state: State) -> str:
    if state == "failed":
        return "; ".join(f"failed at {one['step']}: {one['reason']}" for one in failures_of(order))
    rate = trained(order).get("wer")
    return "done" if rate is None else f"done, {rate:.1%} of the dev set's words wrong"


def _begun(total: int, swept: Swept, left: int) -> str:
    told = [f"{total} runs"]
    told += [f"{len(swept.before)} done before"] if swept.before else []
    told += [f"{len(swept.failed)} failed before (--retry-failed tries again)"] if swept.failed else []
    return f"{', '.join(told)}, {left} to do"


def _write_failures(folder: Path, orders: Sequence[Order]) -> None:
    """failures.jsonl: what has failed so far, run by run."""
    lines = [json.dumps(line, ensure_ascii=False) for order in orders for line in failures_of(order)]
    if not lines:
        (folder / FAILURES).unlink(missing_ok=True)
        return
    with atomic_write(folder / FAILURES) as file:
        file.write("".join(f"{line}\n" for line in lines).encode())
