"""A way to make features in a process of its own, so that its first pass, its memory and its failures are its own."""

import gc
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from flops import synchronise
from peers.extract import Extract, Extractor, Finished, Job, extractors


class FailedError(Exception):
    """It could not be loaded, or did not finish; the message says why."""


@dataclass(frozen=True)
class Pass:
    """One pass over the job.

    `relative_error` is the norm of the difference from the reference over that of the reference, over all utterances;
    `least_cosine` that of any frame.
    """

    seconds: float
    wall_seconds: float
    peak_megabytes: float
    device_peak_megabytes: float | None
    relative_error: float
    least_cosine: float
    report: dict[str, Any] = field(default_factory=dict)


class Isolated:
    """One way, loaded in its own process.

    Raises:
        FailedError: it is not installed or cannot load.
    """

    def __init__(self, way: Extractor, job: Job) -> None:
        if way.missing:
            raise FailedError(f"not installed: {', '.join(way.missing)}")
        self._executor = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self.load_seconds: float = self._call(_load, way.name, job)

    def run(self, folder: Path, reference: Path) -> Pass:
        """A pass into an empty folder. The first of all writes the reference, the others are compared with it."""
        return self._call(_run, folder, reference)

    def close(self) -> None:
        """End the process."""
        self._executor.shutdown()

    def _call(self, function: Any, *arguments: Any) -> Any:
        try:
            return self._executor.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise FailedError("its process ended (out of memory?)") from None
        except FailedError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise FailedError(f"{type(error).__name__}: {lines[0][:300]}") from error


_loaded: tuple[Extract, Job] | None = None
"""In a process of its own: what it runs."""


def _load(name: str, job: Job) -> float:
    global _loaded
    _quieten()
    way = next(way for way in extractors() if way.name == name)
    begun = time.perf_counter()
    _loaded = way.load(job), job
    synchronise(job.device)
    return time.perf_counter() - begun


def _quieten() -> None:
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def _run(folder: Path, reference: Path) -> Pass:
    assert _loaded is not None
    extract, job = _loaded
    _forget_device_peak(job.device)
    begun = time.perf_counter()
    finished = extract(folder)
    synchronise(job.device)
    wall = time.perf_counter() - begun
    peak, device_peak = peak_megabytes(), _device_peak(job.device)
    error, cosine = compare(finished, job, reference)
    done = Pass(finished.seconds or wall, wall, peak, device_peak, error, cosine, finished.report)
    del finished
    _give_back(job.device)
    return done


def compare(finished: Finished, job: Job, reference: Path) -> tuple[float, float]:
    """The relative error and the least frame cosine of what was stored.

    Raises:
        FailedError: it has other frames than are due, or NaN or infinity among its values.
    """
    if not reference.exists():
        features: dict[str, Any] = {audio.id: finished.stored(audio.id) for audio in job.utterances}
        np.savez(reference, **features)
    difference, norm, least = 0.0, 0.0, 1.0
    with np.load(reference) as kept:
        for audio in job.utterances:
            due, found = (values.astype(np.float64) for values in (kept[audio.id], finished.stored(audio.id)))
            if abs(len(due) - len(found)) > 1:  # lhotse wants a frame more than there are
                raise FailedError(f"{audio.id} has {len(found)} frames where {len(due)} are due")
            if not np.isfinite(found).all():
                raise FailedError(f"{audio.id} has NaN or infinity among its features")
            frames = min(len(due), len(found))
            due, found = due[:frames], found[:frames]
            difference += float(((found - due) ** 2).sum())
            norm += float((due**2).sum())
            lengths = np.linalg.norm(due, axis=1) * np.linalg.norm(found, axis=1)
            cosines = (due * found).sum(axis=1) / np.where(lengths > 0, lengths, 1)
            least = min(least, float(np.where((due == found).all(axis=1), 1, cosines).min()))
    return (difference / norm) ** 0.5, least


def peak_megabytes() -> float:
    """The most memory that this process has had (Linux: VmHWM, which a new program begins anew)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1e3
    raise OSError("/proc/self/status has no VmHWM")


def _forget_device_peak(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def _give_back(device: str) -> None:
    """Leave the device to the next, whose process is another."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()


def _device_peak(device: str) -> float | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return torch.cuda.max_memory_allocated(device) / 1e6
