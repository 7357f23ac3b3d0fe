"""Ways to make features of audio files with one checkpoint: one file each, as its own documentation would have it.

Each is loaded first, and then makes the features of the whole job as often as it is asked to, every time into a new folder.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16_000
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Audio:
    """An utterance of the job: its file, mono at 16 kHz, and how many samples it has."""

    id: str
    file: Path
    samples: int


@dataclass(frozen=True)
class Job:
    """What everybody has to do. `batch_seconds` is the padded audio of a batch, for those that make batches."""

    checkpoint: str
    data: Path
    split: str
    limit: int | None
    device: str
    batch_seconds: float
    utterances: tuple[Audio, ...]

    @property
    def audio_seconds(self) -> float:
        """Of all utterances."""
        return sum(audio.samples for audio in self.utterances) / SAMPLE_RATE

    def batches(self) -> Iterator[list[Audio]]:
        """Sorted by length, so that little is padding; at least one utterance each."""
        batch: list[Audio] = []
        for audio in sorted(self.utterances, key=lambda audio: -audio.samples):
            if batch and batch[0].samples * (len(batch) + 1) > self.batch_seconds * SAMPLE_RATE:
                yield batch
                batch = []
            batch.append(audio)
        yield batch


Stored = Callable[[str], np.ndarray]
"""The features `[T, D]` that were stored of an utterance, by its id."""


@dataclass(frozen=True)
class Finished:
    """What a pass left. `seconds` is given by those that measure themselves, `report` what else they tell of the pass."""

    stored: Stored
    seconds: float | None = None
    report: dict[str, Any] = field(default_factory=dict)


Extract = Callable[[Path], Finished]
"""Make the features of the whole job in an empty folder."""


@dataclass(frozen=True)
class Extractor:
    """A way to make features. `needs` are modules.

    `kind` tells what is timed: `bare` is the encoder on audio in memory, features not stored; `ours` and `peer` take audio
    files to features on disk. `wrong` says why the features are not those of the utterances alone.
    """

    name: str
    kind: Literal["bare", "ours", "peer"]
    load: Callable[[Job], Extract]
    needs: Sequence[str] = ()
    precision: str = "float32"
    wrong: str | None = None

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


MODULES = (
    "transformers",
    "ours",
    "compiled",
    "onnxruntime",
    "openvino",
    "torchaudio",
    "s3prl",
    "lhotse",
    "speechbrain",
)


def extractors() -> list[Extractor]:
    """Every way, installed or not; the first is the reference."""
    return [way for module in MODULES for way in import_module(f"peers.extract.{module}").EXTRACTORS]


def read_audio(audio: Audio) -> np.ndarray:
    """Samples `[S]` float32."""
    import soundfile

    return soundfile.read(audio.file, dtype="float32")[0]


def save_each(job: Job, encode: "Callable[[np.ndarray], torch.Tensor]") -> Extract:
    """One utterance after the other from its file to a .npy of its own. `encode`: samples `[S]` to features `[T, D]`."""
    import torch

    def extract(folder: Path) -> Finished:
        with torch.inference_mode():
            for audio in job.utterances:
                np.save(folder / f"{audio.id}.npy", encode(read_audio(audio)).float().cpu().numpy())
        return saved(folder)

    return extract


def saved(folder: Path) -> Finished:
    """A folder with a .npy an utterance."""
    return Finished(lambda name: np.load(folder / f"{name}.npy"))
