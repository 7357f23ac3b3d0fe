"""Where the time of a run goes: seconds of work by stage, the share of each, and which of them holds the others back."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

WINDOW_SECONDS = 5.0
WRITERS = 2
"""Threads that write and hash shards: one does not keep up with a GPU."""
WORK = {"decode": "decoding", "encode": "the encoder", "keep": "quantising", "write": "writing"}
"""The stages that work, and what a person calls them."""
WAITS = ("wait_for_audio", "wait_for_device", "wait_for_disk", "load")


@dataclass(frozen=True)
class Work:
    """How a run is spread over a process: threads that decode, threads that encode, and the threads of torch in each of these;
    and the device that they encode on."""

    decoders: int
    encoders: int
    threads: int
    device: str = "cpu"

    @property
    def stage_threads(self) -> dict[str, int]:
        """The threads of each stage; what a GPU computed is taken in by one."""
        return {"decode": self.decoders, "encode": self.encoders, "keep": self.encoders, "write": WRITERS}


@dataclass
class Stages:
    """Seconds of work of each stage, summed over its threads. Several threads may add at the same time.

    Args:
        threads: that a stage has; what is not named has one.
    """

    threads: dict[str, int]
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys((*WORK, *WAITS), 0.0))
    samples: int = 0
    """Of audio that was encoded."""
    padded: int = 0
    """What these came to with the padding of their batches."""
    _lock: Lock = field(default_factory=Lock, repr=False)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of a block for a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - begun)

    def add(self, stage: str, seconds: float) -> None:
        """Count some seconds for a stage."""
        with self._lock:
            self.seconds[stage] += seconds

    def add_batch(self, samples: int, padded: int) -> None:
        """Count a batch of so many samples, which its padding brought to so many."""
        with self._lock:
            self.samples += samples
            self.padded += padded

    def take(self) -> dict[str, Any]:
        """What was counted since this was asked last: seconds by stage, samples, padded."""
        with self._lock:
            taken = {"seconds": self.seconds, "samples": self.samples, "padded": self.padded}
            self.seconds, self.samples, self.padded = dict.fromkeys(self.seconds, 0.0), 0, 0
        return taken

    def take_in(self, seconds: Mapping[str, float], samples: int, padded: int) -> None:
        """Count what another process counted."""
        for stage, more in seconds.items():
            self.add(stage, more)
        self.add_batch(samples, padded)

    def shares(self, wall: float) -> dict[str, float]:
        """The share of the wall time that each stage's threads were at work: 1 is all of them, all the time."""
        return {stage: self.seconds[stage] / (wall * self.threads.get(stage, 1)) if wall > 0 else 0.0 for stage in WORK}

    @property
    def padding(self) -> float:
        """Padding as a share of what was encoded."""
        return 1 - self.samples / self.padded if self.padded else 0.0


def limiting(shares: Mapping[str, float]) -> str:
    """The stage that holds the others back: that whose threads rest least."""
    return max(shares, key=lambda stage: shares[stage])


class Live:
    """What the live line says of the stages: the one that held the others back lately, and the padding so far."""

    def __init__(self, stages: Stages) -> None:
        self._stages, self._note = stages, ""
        self._at, self._seconds = time.perf_counter(), dict(stages.seconds)

    def note(self) -> str:
        """For example: "limited by the encoder, 2.1 % padding"."""
        now = time.perf_counter()
        if now - self._at >= WINDOW_SECONDS or not self._note:
            spent = {stage: self._stages.seconds[stage] - self._seconds[stage] for stage in WORK}
            busy = {stage: seconds / self._stages.threads.get(stage, 1) for stage, seconds in spent.items()}
            if max(busy.values()) > 0:
                self._note = f"limited by {WORK[limiting(busy)]}"
            self._at, self._seconds = now, dict(self._stages.seconds)
        padding = f"{100 * self._stages.padding:.1f} % padding" if self._stages.padded else ""
        return ", ".join(part for part in (self._note, padding) if part)
