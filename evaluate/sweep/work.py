"""The commands of a run, or of all runs of one training, one after the other, each in a process of its own: what a worker does.

runs/hubert-base-queries50-seed0-3f09ab12cd/
    config.yaml              the resolved configuration
    training/                train-adapter's output_dir; of a checkpoint from elsewhere none
    train.json, train.log    what train-adapter wrote to stdout and stderr
    dev-clean-51c2e0/        evaluate-adapter's folder: results.json and the report
    dev-clean-51c2e0.log
    failed.json              where a command failed, until it is tried again
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from encodeonce.store.files import make_folder, write_json

LOCK, FAILED = ".lock", "failed.json"
TRAIN, WORKER = "train", "worker"
"""What can fail beside evaluations: the training, and whatever does all of it."""
KILL = "kill"
POLL_SECONDS = 0.3
TAIL_LINES = 20
ENDED = ("finished", "early", "minutes")
"""How a training can end that is not gone on with."""

State = Literal["done", "failed", "interrupted"]


@dataclass(frozen=True)
class Step:
    """A command.

    Attributes:
        name: `train`, or `evaluate SPLIT`, of several runs with `of RUN`.
        arguments: of Python.
        output: where its stdout goes; the last line is a JSON object when it is done.
        done: what is there when it is done; None: `output` says so.
    """

    name: str
    arguments: tuple[str, ...]
    log: Path
    output: Path
    done: Path | None = None

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        if self.done is not None:
            return self.done.is_file()
        return last_object(self.output).get("ended") in ENDED

    def undo(self) -> None:
        """Take away what says that it is done."""
        (self.done or self.output).unlink(missing_ok=True)


@dataclass(frozen=True)
class Order:
    """A run as a worker gets it: its paths are absolute; relative ones in arguments and `config` count from `directory`."""

    name: str
    folder: Path
    config: str
    steps: tuple[Step, ...]
    directory: Path

    def is_done(self) -> bool:
        """Whether nothing is left to do."""
        return all(step.is_done() for step in self.steps)


def work(order: Order, stop: Path) -> State:
    """Do what is left of a run. A training is the base of everything behind it; evaluations fail one by one.

    Args:
        stop: a file; when it is there, whatever runs is asked to end, and nothing else is begun; with `KILL` in it, it is killed.
    """
    if stop.exists():
        return "interrupted"
    make_folder(order.folder)
    failures: list[dict[str, Any]] = []
    with _hold(order.folder / LOCK, stop) as lock:
        if lock is None:
            return "interrupted"
        (order.folder / FAILED).unlink(missing_ok=True)
        (order.folder / "config.yaml").write_text(order.config, encoding="utf-8")
        for step in order.steps:
            if step.is_done():
                continue
            if stop.exists():
                return "interrupted"
            begun = step.log.stat().st_size if step.log.exists() else 0
            status = _run(order, step, stop, lock)
            if status == 0 and step.is_done():
                continue
            if stop.exists():
                return "interrupted"
            step.undo()
            failures.append(_failure(order, step, status, begun))
            if step.name == TRAIN:
                break
        if failures:
            write_json(order.folder / FAILED, {"failures": failures})
    return "failed" if failures else "done"


def last_object(path: Path) -> dict[str, Any]:
    """The JSON object in the last line of a file; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return {}
    return found if isinstance(found, dict) else {}


def tail(path: Path, lines: int = TAIL_LINES, begun: int = 0) -> list[str]:
    """The last lines of a log, blank ones left out; none from before byte `begun`."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(begun, path.stat().st_size - 400 * lines))
        text = file.read().decode("utf-8", errors="replace")
        return [line for line in text.splitlines() if line.strip()][-lines:]
    return []


def _run(order: Order, step: Step, stop: Path, lock: IO[str]) -> int:
    """Run a command to its end; its exit status, negative for a signal.

    It has a session of its own, so that Ctrl-C reaches it once, from here; and it holds the run's lock as long as it lives.
    """
    with open(step.log, "ab") as log, open(step.output, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, *step.arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=log,
            cwd=order.directory,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
        _note(lock, process.pid)
        asked = False
        while True:
            try:
                return process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                wanted = _wanted(stop)
                if wanted == KILL:
                    os.killpg(process.pid, signal.SIGKILL)
                elif wanted is not None and not asked:
                    asked = True
                    process.send_signal(signal.SIGTERM)


def _wanted(stop: Path) -> str | None:
    """What the file says; None where it is not there."""
    with suppress(FileNotFoundError):
        return stop.read_text(encoding="utf-8")
    return None


@contextmanager
def _hold(path: Path, stop: Path) -> Iterator[IO[str] | None]:
    """Hold a run, waiting for a process that a killed sweep left behind; None where it is time to stop first."""
    with open(path, "a+", encoding="utf-8") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if stop.exists():
                    yield None
                    return
                time.sleep(POLL_SECONDS)
        yield file


def holder(folder: Path) -> str | None:
    """The process that works on a run, as its lock says; None where nobody does."""
    with suppress(FileNotFoundError), open(folder / LOCK, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another process"
    return None


def _note(lock: IO[str], process: int) -> None:
    lock.truncate(0)
    lock.write(f"process {process}\n")
    lock.flush()


def _failure(order: Order, step: Step, status: int, begun: int) -> dict[str, Any]:
    """A line of failures.jsonl."""
    lines = tail(step.log, begun=begun)
    return {
        "run": order.name,
        "step": step.name,
        "status": status,
        "reason": _reason(status, lines),
        "log": str(step.log),
        "tail": lines,
    }


def _reason(status: int, lines: Sequence[str]) -> str:
    """Why a command failed, in a line."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}" + ("; too little memory?" if name == "SIGKILL" else "")
    said = [line for line in lines if line.startswith("error:")]
    return (said or list(lines) or [f"exit status {status}, and it said nothing"])[-1].removeprefix("error: ")
