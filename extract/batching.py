"""Which utterances of a shard share a batch, and how long audio is cut and joined: pure functions of lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

CUT_SECONDS = 60.0
CONTEXT_SECONDS = 5.0


def batches(lengths: Sequence[int], limit: int, mixes_lengths: bool) -> list[list[int]]:
    """Group utterances of `lengths` samples, longest first, so that no batch pads to more than `limit` samples in all.

    An utterance longer than the limit is a batch of its own; with a limit of 0 every utterance is. Without
    `mixes_lengths` only equal lengths share a batch.

    Returns:
        Lists of positions in `lengths`.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    grouped: list[list[int]] = []
    for i in order:
        longest = lengths[grouped[-1][0]] if grouped else 0
        fits = grouped and longest * (len(grouped[-1]) + 1) <= limit and (mixes_lengths or lengths[i] == longest)
        if fits:
            grouped[-1].append(i)
        else:
            grouped.append([i])
    return grouped


@dataclass(frozen=True, slots=True)
class Cutting:
    """How long audio is cut: windows of at most `cut_seconds`, with `context_seconds` of overlap on each side."""

    cut_seconds: float
    context_seconds: float


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of an utterance that is encoded by itself: samples [start, stop), of whose frames [first, last) are kept."""

    start: int
    stop: int
    first: int
    last: int


def windows(samples: int, hop: int, receptive_field: int, cut: int, context: int) -> list[Window]:
    """Cut an utterance of more than `cut` samples into windows of at most `cut`, with `context` samples on each side.

    The frames of the utterance are dealt evenly to as few windows as `cut` allows. Each window sees up to `context`
    samples more on either side, begins at a frame's first sample and ends with a frame's last, so that its frames are
    frames of the whole; those that it was dealt are kept.
    """
    frames = max(0, (samples - receptive_field) // hop + 1)
    if samples <= cut or frames == 0:
        return [Window(0, samples, 0, frames)]
    room = max(1, (cut - receptive_field) // hop + 1)
    around = min(context // hop, (room - 1) // 2)
    core = room - 2 * around
    count = -(-frames // core)
    made = []
    for i in range(count):
        begin, end = i * frames // count, (i + 1) * frames // count
        left, right = max(0, begin - around), min(frames, end + around)
        stop = (right - 1) * hop + receptive_field
        made.append(Window(left * hop, stop, begin - left, end - left))
    return made
