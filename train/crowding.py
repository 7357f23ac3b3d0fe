"""Who else keeps busy the cores that a training on a CPU is about to use."""

import math
import os
import time
from pathlib import Path

CPU_TIMES = Path("/proc/stat")
IDLE = slice(3, 5)
"""Of a core's times, those in which it does nothing: idle and iowait."""
TIMES = 8
"""user, nice, system, idle, iowait, irq, softirq, steal; those behind them are within the first two (proc(5))."""
SHORTEST = 0.5
"""Seconds that are worth comparing: the times are told in hundredths."""
SPARED = 0.5
"""Of a core: what others may take before threads wait for each other because of them."""


class OtherProcesses:
    """What others compute on the cores of this process, from the moment when this is made."""

    def __init__(self) -> None:
        self.cores = cores_of_process()
        self._begun, self._before = time.monotonic(), self._taken()

    def busy(self) -> float | None:
        """Cores that others have kept busy since then, on average; None where that cannot be told, or not yet."""
        seconds, now = time.monotonic() - self._begun, self._taken()
        if now is None or self._before is None or seconds < SHORTEST:
            return None
        return max(0.0, (now - self._before) / seconds)

    def _taken(self) -> float | None:
        """Seconds of the cores' time so far that were not idle, nor this process's own."""
        found = core_seconds(CPU_TIMES)
        if not self.cores or not self.cores <= found.keys():
            return None
        return sum(found[core] for core in self.cores) - time.process_time()


def cores_of_process() -> frozenset[int]:
    """The cores that this process may use; none where the system does not tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def core_seconds(path: Path) -> dict[int, float]:
    """Seconds that each core has computed since the machine began, for whomever, as `/proc/stat` tells; nothing without one."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    ticks = {
        line.split()[0][3:]: [int(value) for value in line.split()[1 : 1 + TIMES]]
        for line in lines
        if line[:3] == "cpu"
    }
    return {
        int(core): (sum(times) - sum(times[IDLE])) / os.sysconf("SC_CLK_TCK") for core, times in ticks.items() if core
    }


def crowded(threads: int, cores: int, busy: float | None) -> str | None:
    """What to say where others hold cores that a training on a CPU is about to use; nothing where they do not.

    Threads that share an operation wait for each other: where one core of two was taken, two threads trained a tenth as fast.

    Args:
        cores: that this process may use.
        busy: of these, kept so by others.
    """
    if threads == 1 or busy is None or busy + threads < cores + SPARED:
        return None
    spare = max(1, math.floor(cores - busy))
    return (
        f"other processes keep {busy:.1f} of {cores} cores busy, and {threads} threads that wait for each other lose more by "
        f"that than they gain: training.threads={spare}"
    )
