"""The systems that are compared: one file each, as its own documentation would have it. All of them do one of two jobs.

`random`: given which utterances, fill a padded batch with them. `sequence`: go through all utterances once, in an order of the
system's own, in padded batches. Both give the same float16 values in the same preallocated buffer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from synthetic import Corpus

Fill = Callable[[Sequence[int], np.ndarray], None]
"""(which utterances, `out` [B, T, D] float16): fills `out`, zeros behind the end of each."""

Epoch = Callable[[np.ndarray], Iterator[tuple[Sequence[int], np.ndarray]]]
"""(a buffer [frames_per_batch, D]) -> (which utterances, `out` [B, T, D]) batch by batch."""


@dataclass(frozen=True)
class System:
    """A way to store and read features. `needs` are modules; `folder` is shared by systems that read the same files."""

    name: str
    folder: str
    needs: tuple[str, ...]
    build: Callable[[Corpus, Path], None]
    random: Callable[[Corpus, Path], Fill] | None = None
    sequence: Callable[[Corpus, Path, int], Epoch] | None = None
    reads: bool = True
    """False for a limit that reads nothing."""

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


MODULES = (
    "limits",
    "ours",
    "zarr",
    "tensorstore",
    "hdf5",
    "webdataset",
    "litdata",
    "mosaicml",
    "arrayrecord",
    "lhotse",
)


def systems() -> list[System]:
    """Every system, installed or not."""
    return [system for module in MODULES for system in import_module(f"peers.{module}").SYSTEMS]


def put(out: np.ndarray, values: np.ndarray) -> None:
    """One utterance `[T, D]` into its slot `[longest, D]` of a padded batch."""
    out[: len(values)] = values
    out[len(values) :] = 0


def collect(
    corpus: Corpus, samples: Iterator[tuple[int, np.ndarray]], buffer: np.ndarray
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Utterances as they come, (which, values [T, D]), in padded batches."""
    batch: list[tuple[int, np.ndarray]] = []
    longest = 0
    for sample in samples:
        frames = len(sample[1])
        if batch and max(longest, frames) * (len(batch) + 1) > len(buffer):
            yield _padded(batch, longest, buffer)
            batch, longest = [], 0
        batch.append(sample)
        longest = max(longest, frames)
    yield _padded(batch, longest, buffer)


def _padded(batch: list[tuple[int, np.ndarray]], longest: int, buffer: np.ndarray) -> tuple[list[int], np.ndarray]:
    out = view(buffer, len(batch), longest)
    for slot, (_, values) in zip(out, batch, strict=True):
        put(slot, values)
    return [i for i, _ in batch], out


def view(buffer: np.ndarray, utterances: int, longest: int) -> np.ndarray:
    """A batch [B, T, D] at the beginning of a buffer [frames, D]."""
    return buffer[: utterances * longest].reshape(utterances, longest, -1)
