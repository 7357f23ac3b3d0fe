"""What the passes of extract.py come to."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from isolated import Pass
from peers.extract import Job


@dataclass
class Result:
    """What one way gave; the medians are of the passes after the first, where there are any.

    `of_bare` is its time over that of the reference in the same round; `of_alone` over that of our encoder on audio in memory,
    in the same precision; `of_peak` the share of what the machine does in a matrix product of that precision.
    `encoder_times_real_time` counts the seconds that a run spent in the encoder alone. `gpu_idle_between_batches` is the share of
    a run in which the GPU had no batch; what it rests within a batch, waiting for the host, is not in it.
    """

    name: str
    kind: str
    precision: str
    wrong: str | None = None
    failed: str | None = None
    load_seconds: float | None = None
    passes: list[Pass] = field(default_factory=list)
    first_times_real_time: float | None = None
    times_real_time: float | None = None
    encoder_times_real_time: float | None = None
    of_bare: float | None = None
    of_alone: float | None = None
    of_peak: float | None = None
    gpu_idle_between_batches: float | None = None


def summarise(results: Sequence[Result], job: Job, operations: float | None, peaks: Mapping[str, float]) -> None:
    """Fill in what the passes come to.

    Args:
        operations: of the whole job.
        peaks: operations a second in a matrix product, by precision.
    """
    audio_seconds, on_gpu = job.audio_seconds, job.device.startswith("cuda")
    bare = results[0]
    alone = {r.precision: r for r in results[1:] if r.kind == "bare"}
    for result in results:
        if result.failed or not result.passes:
            continue
        seconds = statistics.median([p.seconds for p in later(result)])
        result.first_times_real_time = audio_seconds / result.passes[0].seconds
        result.times_real_time = audio_seconds / seconds
        result.of_bare = ratio(result, bare)
        if result.kind == "ours" and result.precision in alone:
            result.of_alone = ratio(result, alone[result.precision])
        if operations:
            result.of_peak = operations / seconds / peaks[result.precision]
        if result.kind == "ours":
            spent = statistics.median([p.report["encoder_seconds"] for p in later(result)])
            result.encoder_times_real_time = audio_seconds / spent if spent else None
            if on_gpu:  # one thread encodes there, and counts the device's own time
                busy = statistics.median([p.report["stages"]["encode"] for p in later(result)])
                result.gpu_idle_between_batches = 1 - busy


def later(result: Result) -> list[Pass]:
    """The passes after the first; the first where there are no others."""
    return result.passes[1:] or result.passes


def ratio(result: Result, other: Result) -> float | None:
    """The median over the rounds of the time of one over that of the other in the same round."""
    if other.failed or not other.passes:
        return None
    return statistics.median([a.seconds / b.seconds for a, b in zip(later(result), later(other), strict=True)])
