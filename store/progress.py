"""How far a command over a store is: a live line on a terminal, a plain line now and then otherwise; on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

PLAIN_SECONDS = 15.0

Advance = Callable[[int], object]
"""Told how many units more are done; threads may call it."""


def silent(units: int) -> None:
    """Tell nobody."""


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Show how much of `total` units is done, with rate and time left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    done, begun, lock = 0, time.monotonic(), Lock()
    told = begun
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(title, total=total, state="")

    def advance(units: int) -> None:
        nonlocal done, told
        with lock:
            done, now = done + units, time.monotonic()
            rate = done / max(now - begun, 1e-6)
            state = f"{done:,} of {total:,} {unit}, {rate:,.0f} a second"
            bar.update(task, completed=done, state=state)
            if not console.is_terminal and now - told > PLAIN_SECONDS:
                told = now
                left = (total - done) / rate
                console.print(f"{title}: {state}, {left:.0f} s left", markup=False, emoji=False)

    with bar:
        yield advance
