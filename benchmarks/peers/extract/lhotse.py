"""lhotse: a FeatureExtractor around transformers, as its documentation has it; stored as NumpyFiles, cut by cut and in batches."""

import os
from pathlib import Path
from typing import Any

from peers.extract import Extract, Extractor, Finished, Job
from peers.extract.transformers import LEAKS


def cut_set(job: Job) -> Any:
    """The files as cuts; headers are read here, as in the preparation of any corpus."""
    from lhotse import CutSet, Recording

    recordings = [Recording.from_file(audio.file, recording_id=audio.id) for audio in job.utterances]
    return CutSet.from_cuts(recording.to_cut() for recording in recordings).to_eager()


def finished(cuts: Any) -> Finished:
    """What the manifest that a pass returned points to."""
    found = {cut.recording_id: cut for cut in cuts}
    return Finished(lambda name: found[name].load_features())


def by_cut(job: Job) -> Extract:
    """compute_and_store_features, in this process."""
    from lhotse import NumpyFilesWriter

    from peers.extract.lhotse_extractor import TransformersExtractor

    extractor, cuts = TransformersExtractor(job), cut_set(job)

    def extract(folder: Path) -> Finished:
        path = folder / "features"
        return finished(
            cuts.compute_and_store_features(extractor, path, storage_type=NumpyFilesWriter, progress_bar=False)
        )

    return extract


def in_batches(job: Job) -> Extract:
    """compute_and_store_features_batch: audio decoded by worker processes, batches by seconds in the order of the cuts."""
    from lhotse import NumpyFilesWriter

    from peers.extract.lhotse_extractor import TransformersExtractor

    extractor, cuts = TransformersExtractor(job), cut_set(job)

    def extract(folder: Path) -> Finished:
        return finished(
            cuts.compute_and_store_features_batch(
                extractor,
                folder / "features",
                batch_duration=job.batch_seconds,
                num_workers=min(4, os.cpu_count() or 1),
                storage_type=NumpyFilesWriter,
            )
        )

    return extract


EXTRACTORS = [
    Extractor("lhotse compute_and_store_features", "peer", by_cut, ("lhotse",)),
    Extractor("lhotse compute_and_store_features_batch", "peer", in_batches, ("lhotse",), wrong=LEAKS),
]
