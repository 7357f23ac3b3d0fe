"""A corpus as large as one likes: utterances as long as LibriSpeech's, features of random numbers, and random batches of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FRAME_RATE = 50
LEAST_SECONDS, MOST_SECONDS = 2.0, 17.0
BETA = 1.74, 0.79
"""Durations are Beta(1.74, 0.79) between 2 and 17 s: 12.3 s in the mean, as in the 960 hours of LibriSpeech, and as there most
utterances are nearly as long as the longest, with a tail of shorter ones."""


def draw_lengths(utterances: int, seed: int = 0) -> np.ndarray:
    """Frames of utterances, int32 `[utterances]`."""
    drawn = np.random.default_rng(seed).beta(*BETA, utterances)
    seconds = LEAST_SECONDS + (MOST_SECONDS - LEAST_SECONDS) * drawn
    return np.round(seconds * FRAME_RATE).astype(np.int32)


@dataclass(frozen=True)
class Corpus:
    """Features of all utterances, one after the other in one mapped file: `values` [frames, D] float16."""

    path: Path
    frames: np.ndarray
    starts: np.ndarray
    values: np.ndarray

    @property
    def width(self) -> int:
        """D."""
        return self.values.shape[1]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.values[self.starts[i] : self.starts[i] + self.frames[i]]

    def name(self, i: int) -> str:
        """The id of an utterance."""
        return f"utterance-{i:07d}"

    def index(self, name: str) -> int:
        """The utterance of an id."""
        return int(name.removeprefix("utterance-"))

    @property
    def bytes(self) -> int:
        """Of the features alone."""
        return self.values.nbytes


def make_corpus(path: Path, utterances: int, width: int) -> Corpus:
    """The corpus in a file, written if it does not stand there yet."""
    frames = draw_lengths(utterances)
    ends = np.cumsum(frames, dtype=np.int64)
    shape = (int(ends[-1]), width)
    if not path.exists() or path.stat().st_size != 2 * shape[0] * width:
        generator = np.random.default_rng(1)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for count in frames.tolist():
                file.write(generator.standard_normal((count, width), np.float32).astype(np.float16).tobytes())
    return Corpus(path, frames, ends - frames, np.memmap(path, np.float16, "r", shape=shape))


def random_batches(frames: np.ndarray, frames_per_batch: int, seed: int) -> list[np.ndarray]:
    """All utterances in a random order, cut into batches of at most so many padded frames."""
    order = np.random.default_rng(seed).permutation(len(frames))
    return [np.array(batch) for batch in cut(order.tolist(), frames, frames_per_batch)]


def cut(order: Sequence[int], frames: np.ndarray, frames_per_batch: int) -> Iterator[list[int]]:
    """A sequence of utterances cut into batches of at most so many padded frames."""
    batch: list[int] = []
    longest = 0
    for i in order:
        if batch and max(longest, frames[i]) * (len(batch) + 1) > frames_per_batch:
            yield batch
            batch, longest = [], 0
        batch.append(i)
        longest = max(longest, int(frames[i]))
    yield batch
