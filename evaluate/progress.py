"""How far an evaluation is: a live line on a terminal, a plain line now and then otherwise; on stderr."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 15.0


class EvaluationProgress:
    """Tells what an evaluation does. `quiet` says nothing; used in a `with`, which takes the live line away in the end."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self._console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
        )
        live = not quiet and self._console.is_terminal
        self._bar = Progress(*columns, console=self._console, transient=True, disable=not live)
        self._task: TaskID | None = None
        self._begun = self._told = time.monotonic()
        self._first = 0

    def say(self, line: str) -> None:
        """One line about what has happened."""
        if not self.quiet:
            self._console.print(line, markup=False, emoji=False)

    def advance(self, done: int, total: int) -> None:
        """So many utterances are decoded; the first call is the beginning."""
        now = time.monotonic()
        if self._task is None:
            self._begun = self._told = now
            self._first = done
            self._task = self._bar.add_task("Decoding", total=total, completed=done, state="")
        rate = (done - self._first) / max(now - self._begun, 1e-6)
        state = f"{done:,} of {total:,} utterances, {rate:,.1f} a second"
        self._bar.update(self._task, completed=done, total=total, state=state)
        if done == total:
            self._bar.remove_task(self._task)
            self._task = None
        elif not self.quiet and not self._console.is_terminal and now - self._told > PLAIN_SECONDS:
            self._told = now
            left = f", {(total - done) / rate:,.0f} s left" if rate else ""
            self.say(f"Decoding: {state}{left}")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
