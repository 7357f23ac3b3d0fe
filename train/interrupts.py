"""Ctrl-C and SIGTERM, which end a training after the step it is at, with all of it kept."""

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Inside this, the first such signal sets `met`; the next one does what it did before. Outside of the main thread, nothing."""

    def __init__(self) -> None:
        self.met = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._meet) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _meet(self, number: int, frame: FrameType | None) -> None:
        self.met = True
        signal.signal(number, self._before[number])
