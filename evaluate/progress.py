"""How far an evaluation is: a live line on a terminal, a plain line now and then otherwise; on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

from encodeonce.train.progress import span
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0
FIRST_SECONDS = 5.0
"""After which the time that all will take is told, where it is long."""
LONG_SECONDS = 60.0


class EvaluationProgress:
    """Tells what an evaluation does. `quiet` says nothing; used in a `with`, which takes the live line away in the end."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
        )
        live = not quiet and self.console.is_terminal
        self.bar = Progress(*columns, console=self.console, transient=True, disable=not live)
        self._decoding = self.counting("Decoding", "utterances")

    def say(self, line: str) -> None:
        """One line about what has happened."""
        if not self.quiet:
            self.console.print(line, markup=False, emoji=False)

    def advance(self, done: int, total: int) -> None:
        """So many utterances are decoded; the first call is the beginning."""
        self._decoding.advance(done, total)

    def counting(self, title: str, unit: str, way_out: str = "") -> "Counting":
        """For another kind of work; `way_out` is told at its beginning where it takes long."""
        return Counting(self, title, unit, way_out)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()


class Counting:
    """Tells how much of one kind of work is done."""

    def __init__(self, shown: EvaluationProgress, title: str, unit: str, way_out: str = "") -> None:
        self._shown, self._title, self._unit, self._way_out = shown, title, unit, way_out
        self._task: TaskID | None = None
        self._begun = self._told = 0.0
        self._first = 0
        self._warned = False

    def say(self, line: str) -> None:
        """One line about what has happened."""
        self._shown.say(line)

    def advance(self, done: int, total: int) -> None:
        """So many units are done; the first call is the beginning."""
        now, bar = time.monotonic(), self._shown.bar
        if self._task is None:
            self._begun = self._told = now
            self._first, self._warned = done, not self._way_out
            self._task = bar.add_task(self._title, total=total, completed=done, state="")
        rate = (done - self._first) / max(now - self._begun, 1e-6)
        state = f"{done:,} of {total:,} {self._unit}, {rate:,.1f} a second"
        bar.update(self._task, completed=done, total=total, state=state)
        if done == total:
            bar.remove_task(self._task)
            self._task = None
            return
        left = (total - done) / rate if rate else None
        if left is not None and not self._warned and now - self._begun > FIRST_SECONDS:
            self._warned = True
            if left > LONG_SECONDS:
                self.say(f"{self._title}: about {span(left)} for {total - done:,} {self._unit}; {self._way_out}")
        if not self._shown.console.is_terminal and now - self._told > PLAIN_SECONDS:
            self._told = now
            self.say(f"{self._title}: {state}" + ("" if left is None else f", {left:,.0f} s left"))
