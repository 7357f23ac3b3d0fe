"""Ctrl-C and SIGTERM, which end a training after the step, or the batch of a validation, that it is at, with all of it kept."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Inside this, the first such signal sets `met`; the next one does what it did before. Outside of the main thread, nothing.

    Args:
        tell: what says to somebody who waits that the signal was heard.
    """

    def __init__(self, tell: Callable[[], object] | None = None) -> None:
        self.met = False
        self._tell = tell
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._meet) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _meet(self, number: int, frame: FrameType | None) -> None:
        if self._tell and not self.met:
            # In a thread: the signal may have come in the middle of a write, and buffered files refuse another one there.
            threading.Thread(target=self._tell, daemon=True).start()
        self.met = True
        signal.signal(number, self._before[number])
