"""The one progress display: a live line on a terminal, plain lines now and then otherwise; all of it on stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 15.0
BAR_WIDTH, LEAST_BAR = 40, 10


@dataclass
class _Line:
    """The live line: title, bar and state. Where the terminal is too narrow for all of them the bar goes first, then the title."""

    title: str
    total: float
    done: float = 0.0
    state: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width - len(self.title) - len(self.state) - 2
        cells: list[Text | ProgressBar] = [Text(self.state, no_wrap=True, overflow="ellipsis")]
        if room >= LEAST_BAR:
            cells.insert(0, ProgressBar(self.total, self.done, min(room, BAR_WIDTH)))
        if room >= -1:
            cells.insert(0, Text(self.title, no_wrap=True))
        row = Table.grid(padding=(0, 1))
        row.add_row(*cells)
        yield row


class Progress:
    """Tells what a run does. `quiet` leaves failures alone; `verbose` adds details."""

    def __init__(self, quiet: bool = False, verbose: bool = False, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.console = Console(file=self.stream, highlight=False, soft_wrap=True)
        self.quiet, self.verbose = quiet, verbose
        self._line: _Line | None = None
        self._done = self._total = self._first = self._begun = self._told = 0.0
        self._title = ""

    def say(self, line: str) -> None:
        """One line about a phase that has ended, or a fact worth knowing."""
        if not self.quiet:
            self._print(line)

    def detail(self, line: str) -> None:
        """A line for those who asked for details."""
        if self.verbose and not self.quiet:
            self._print(line)

    def failure(self, name: str, reason: str) -> None:
        """An utterance that could not be used; told even when quiet."""
        self._print(f"failed: {name}: {reason}")

    def _print(self, line: str) -> None:
        printable = (
            line.replace("\n", " ").encode("utf-8", "backslashreplace").decode()
        )  # names of files may be no Unicode
        self.console.print(printable, markup=False, emoji=False)

    @contextmanager
    def task(self, title: str, seconds: float) -> Iterator[None]:
        """A stretch of work on so many seconds of audio."""
        self._title, self._total, self._done = title, seconds, 0.0
        self._begun = self._told = time.monotonic()
        if self.quiet or not self.console.is_terminal:
            yield
            return
        line = _Line(title, seconds)
        with Live(line, console=self.console, transient=True, refresh_per_second=10):
            self._line = line
            try:
                yield
            finally:
                self._line = None

    def advance(self, seconds: float, note: str = "") -> None:
        """So many seconds of audio more are done; `note` says what else is worth knowing now."""
        now = time.monotonic()
        if not self._done:  # the rate is that from the first batch on: before it the encoder was being loaded
            self._begun, self._first = now, seconds
        self._done += seconds
        rate = (self._done - self._first) / max(now - self._begun, 1e-6)
        left = max(0.0, self._total - self._done) / rate if rate > 0 else 0.0
        digits = 2 if self._total < 360_000 else 0
        state = f"{self._done / 3600:.{digits}f} of {self._total / 3600:.{digits}f} h"
        if rate > 0:
            state += f", {rate:.0f}x, {_span(left)} left"
        if note:
            state += f", {note}"
        if self._line:
            self._line.done, self._line.state = self._done, state
        elif now - self._told > PLAIN_SECONDS:
            self._told = now
            self.say(f"{self._title}: {state}")


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
