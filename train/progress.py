"""How a training goes: a live line on a terminal, plain lines now and then otherwise; on stderr, by the first rank alone."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

PLAIN_SECONDS = 15.0


class TrainingProgress:
    """Tells how far a training is. `quiet` says nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
        self.quiet = quiet
        self._bar: tuple[Progress, TaskID] | None = None
        self._told = -math.inf

    def say(self, line: str) -> None:
        """One line about what has happened."""
        if not self.quiet:
            self.console.print(line, markup=False, emoji=False)

    @contextmanager
    def steps(self, total: int) -> Iterator[None]:
        """A training of so many steps."""
        if self.quiet or not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("Training"), BarColumn(bar_width=20), TextColumn("{task.fields[state]}"))
        with Progress(*columns, console=self.console, transient=True) as bar:
            self._bar = bar, bar.add_task("", total=total, state="")
            try:
                yield
            finally:
                self._bar = None

    def show(self, step: int, total: int, state: str) -> None:
        """Where it stands, and what else is worth knowing now."""
        now, line = time.monotonic(), f"step {step:,} of {total:,}, {state}"
        if self._bar:
            bar, task = self._bar
            bar.update(task, completed=step, state=line)
        elif step > 1 and now - self._told > PLAIN_SECONDS:  # the first step is slower than all others
            self._told = now
            self.say(line)


def span(seconds: float) -> str:
    """A time that a person can read: 42 s, 3 min 05 s, 2 h 10 min."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
