"""Long audio cut where it is quietest, so that no piece is longer than what an adapter was trained on."""

import numpy as np

FRAME_SECONDS = 0.02
"""Of which the loudness is compared."""
PAUSE_SECONDS = 0.3
"""The loudness is a mean over so long: a pause between words, not the closure of a stop."""
LEAST_SHARE = 0.5
"""Of the longest segment: a cut is sought from there on."""


def cut(samples: np.ndarray, rate: int, longest: float) -> list[tuple[int, int]]:
    """First sample and end of each segment; together they are the audio, each at most `longest` seconds.

    A segment ends in the middle of the quietest 0.3 s in the second half of what it may be long.

    Args:
        samples: `[samples]` float32.
        rate: samples a second.
    """
    most, frame = int(longest * rate), max(1, int(FRAME_SECONDS * rate))
    segments, start = [], 0
    while len(samples) - start > most:
        first, last = start + int(LEAST_SHARE * most), start + most
        start, before = max(start + 1, _quietest(samples[first:last], frame) + first), start
        segments.append((before, start))
    return [*segments, (start, len(samples))]


def _quietest(samples: np.ndarray, frame: int) -> int:
    """The middle of the quietest stretch; of equally quiet ones the last, for fewer segments."""
    count = len(samples) // frame
    if not count:
        return len(samples)
    power = np.square(samples[: count * frame].reshape(count, frame), dtype=np.float64).mean(1)
    width = min(count, max(1, round(PAUSE_SECONDS / FRAME_SECONDS)))
    summed = np.convolve(power, np.ones(width), "valid")
    at = len(summed) - 1 - int(np.argmin(summed[::-1]))
    return round((at + width / 2) * frame)
