"""encodeonce: whole runs into a new store, and its encoder alone, in the batches of a run, on audio in memory."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from peers.extract import PRECISIONS, Extract, Extractor, Finished, Job, read_audio

if TYPE_CHECKING:
    from encodeonce.extract.request import Request


def request_of(job: Job, precision: str, folder: Path) -> "Request":
    """What a run is asked for: float32 is stored, so that rounding is not among the errors."""
    from encodeonce.extract.request import Request

    return Request(
        encoder=job.checkpoint,
        splits=(job.split,),
        data=job.data,
        store=folder / "store",
        dtype="float32",
        precision=precision,
        device=job.device,
        limit=job.limit,
    )


def pipeline(precision: str, job: Job) -> Extract:
    """extract_split into a new store; its own pipeline_seconds, which loading is no part of."""
    from encodeonce.extract.cache import FileCache
    from encodeonce.extract.job import extract_split
    from encodeonce.extract.progress import Progress
    from encodeonce.extract.run import Run
    from encodeonce.extract.schedule import maker_of
    from encodeonce.store import FeatureStore

    def extract(folder: Path) -> Finished:
        run = Run(request_of(job, precision, folder), Progress(quiet=True), FileCache(folder / "cache"))
        with maker_of(run) as maker:
            report = extract_split(run, job.split, maker)
        if report.encoded != len(job.utterances):
            raise RuntimeError(f"{report.encoded} of {len(job.utterances)} utterances were encoded")
        store = FeatureStore(report.store)
        return Finished(lambda name: store[name].features, report.pipeline_seconds, asdict(report))

    return extract


def alone(precision: str, job: Job) -> Extract:
    """BatchEncoder.encode on decoded audio, one batch after the other."""
    from encodeonce.extract.batching import batches
    from encodeonce.extract.cache import FileCache
    from encodeonce.extract.progress import Progress
    from encodeonce.extract.run import Run

    with TemporaryDirectory() as folder:
        run = Run(request_of(job, precision, Path(folder)), Progress(quiet=True), FileCache(Path(folder) / "cache"))
        outputs = list(run.outputs.values())
        encoder = run.load(outputs)
    grouped = batches([audio.samples for audio in job.utterances], run.batch_samples(), run.encoder.mixes_lengths)
    audio = [run.encoder.prepare(read_audio(audio)) for audio in job.utterances]

    def extract(folder: Path) -> Finished:
        features: dict[str, np.ndarray] = {}
        for batch in grouped:
            for i, frames in zip(batch, encoder.encode([audio[i] for i in batch]), strict=True):
                features[job.utterances[i].id] = frames[outputs[0].what]
        return Finished(features.__getitem__)

    return extract


EXTRACTORS = [
    *(
        Extractor(f"encodeonce, {precision}", "ours", partial(pipeline, precision), (), precision)
        for precision in PRECISIONS
    ),
    *(
        Extractor(f"encodeonce's encoder in memory, {precision}", "bare", partial(alone, precision), (), precision)
        for precision in PRECISIONS
    ),
]
