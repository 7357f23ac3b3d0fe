"""Buffers that batches are filled into, again and again."""

import weakref
from collections import deque
from typing import Any

import numpy as np


class Ring:
    """Buffers that come back when nobody looks at them any more.

    A buffer is handed out as an array; when that array and everything made of it (views, tensors that share its memory) is
    gone, its memory serves the next batch. Whoever keeps a batch keeps its values: then the ring grows instead.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._free: deque[np.ndarray] = deque()

    def __getstate__(self) -> dict[str, Any]:
        return {"_pinned": self._pinned, "_free": deque()}

    def take(self, size: int) -> np.ndarray:
        """`[size]` bytes, whatever they held before."""
        while self._free:
            try:
                memory = self._free.popleft()
            except IndexError:  # another thread was quicker
                break
            if len(memory) >= size:
                return self._lent(memory)[:size]  # a smaller one is let go: batches of this size are usual now
        return self._lent(self._allocate(size))[:size]

    def _lent(self, memory: np.ndarray) -> np.ndarray:
        loan = _Loan(memory)
        back = weakref.finalize(loan, self._free.append, memory)
        back.__setattr__("atexit", False)
        return np.asarray(loan)

    def _allocate(self, size: int) -> np.ndarray:
        if not self._pinned:
            return np.zeros(size, np.uint8)
        import torch

        return torch.zeros(size, dtype=torch.uint8, pin_memory=True).numpy()


class _Loan:
    """What an array and its views share as long as any of them lives."""

    def __init__(self, memory: np.ndarray) -> None:
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__
