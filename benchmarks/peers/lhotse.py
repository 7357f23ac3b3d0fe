"""lhotse: a .npy file an utterance, and Shar read in its own order."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from synthetic import FRAME_RATE, Corpus

from peers import Epoch, Fill, System, collect, put


def features_of(corpus: Corpus, i: int) -> dict[str, Any]:
    """What lhotse wants to know of a matrix."""
    return {
        "type": "synthetic",
        "num_frames": int(corpus.frames[i]),
        "num_features": corpus.width,
        "frame_shift": 1 / FRAME_RATE,
        "sampling_rate": 16_000,
        "start": 0,
        "duration": int(corpus.frames[i]) / FRAME_RATE,
        "channels": 0,
        "recording_id": corpus.name(i),
    }


def build_files(corpus: Corpus, folder: Path) -> None:
    """NumpyFilesWriter."""
    from lhotse import Features, FeatureSet
    from lhotse.features.io import NumpyFilesWriter

    found = []
    with NumpyFilesWriter(folder / "features") as writer:
        for i in range(len(corpus)):
            key = writer.write(corpus.name(i), np.array(corpus[i]))
            found.append(
                Features(
                    storage_type=writer.name,
                    storage_path=str(writer.storage_path),
                    storage_key=key,
                    **features_of(corpus, i),
                )
            )
    FeatureSet.from_features(found).to_file(folder / "features.jsonl.gz")


def by_file(corpus: Corpus, folder: Path) -> Fill:
    """features.load()."""
    from lhotse import FeatureSet

    manifest = {features.recording_id: features for features in FeatureSet.from_file(folder / "features.jsonl.gz")}

    def fill(batch: Sequence[int], out: np.ndarray) -> None:
        for slot, i in zip(out, batch, strict=True):
            put(slot, manifest[corpus.name(i)].load())

    return fill


def build_shar(corpus: Corpus, folder: Path) -> None:
    """SharWriter, 1,000 cuts a shard, the features as numpy wrote them."""
    from lhotse import Features, MonoCut
    from lhotse.features.io import MemoryRawWriter
    from lhotse.shar import SharWriter

    writer = MemoryRawWriter()
    with SharWriter(str(folder), fields={"features": "numpy"}, shard_size=1000) as shar:
        for i in range(len(corpus)):
            about = features_of(corpus, i)
            key = writer.write("", np.array(corpus[i]))
            features = Features(storage_type=writer.name, storage_path="", storage_key=key, **about)
            shar.write(MonoCut(corpus.name(i), 0, about["duration"], 0, features=features))


def shar(corpus: Corpus, folder: Path, frames_per_batch: int) -> Epoch:
    """CutSet.from_shar(...), cut.load_features()."""
    from lhotse import CutSet

    def epoch(buffer: np.ndarray) -> Iterator[tuple[Sequence[int], np.ndarray]]:
        cuts = CutSet.from_shar(in_dir=str(folder))
        return collect(corpus, ((corpus.index(cut.id), cut.load_features()) for cut in cuts), buffer)

    return epoch


SYSTEMS = [
    System("lhotse, a .npy an utterance", "lhotse", ("lhotse",), build_files, by_file),
    System("lhotse Shar, sequential", "lhotse-shar", ("lhotse",), build_shar, sequence=shar),
]
