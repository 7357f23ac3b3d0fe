"""encodeonce: whole runs into a new store, and its encoder alone, in the batches of a run, on audio in memory."""

from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from peers.extract import PRECISIONS, Extract, Extractor, Finished, Job, read_audio


def pipeline(precision: str, job: Job) -> Extract:
    """extract_split into a new store, float32 so that rounding is not among the errors; its own pipeline_seconds."""
    from encodeonce.extract.cache import FileCache
    from encodeonce.extract.job import extract_split
    from encodeonce.extract.progress import Progress
    from encodeonce.extract.request import Request
    from encodeonce.extract.run import Run
    from encodeonce.store import FeatureStore

    def extract(folder: Path) -> Finished:
        request = Request(
            encoder=job.checkpoint,
            splits=(job.split,),
            data=job.data,
            store=folder / "store",
            dtype="float32",
            precision=precision,
            device=job.device,
            limit=job.limit,
        )
        report = extract_split(Run(request, Progress(quiet=True), FileCache(folder / "cache")), job.split)
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
    from encodeonce.extract.request import Request
    from encodeonce.extract.run import Run

    request = Request(job.checkpoint, (job.split,), dtype="float32", precision=precision, device=job.device)
    run = Run(request, Progress(quiet=True), FileCache(None))
    outputs = list(run.outputs.values())
    encoder = run.load(outputs)
    limit = int(run.batch_seconds() * run.encoder.sample_rate)
    grouped = batches([audio.samples for audio in job.utterances], limit, run.encoder.mixes_lengths)
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
