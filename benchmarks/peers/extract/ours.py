"""encodeonce: whole runs into a new store, and its encoder alone, in the batches of a run, on audio in memory."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from peers.extract import PRECISIONS, Extract, Extractor, Finished, Job, read_audio

if TYPE_CHECKING:
    from encodeonce.extract.encode import BatchEncoder
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
    """The encoder of a run on decoded audio, one batch after the other."""
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
    numbers = {utterance.id: i for i, utterance in enumerate(job.utterances)}
    encode = left_on_device if job.device.startswith("cuda") else brought_home

    def extract(folder: Path) -> Finished:
        stored = encode(encoder, grouped, audio, outputs[0].what)
        return Finished(lambda name: stored(numbers[name]))

    return extract


Batches = Sequence[Sequence[int]]
Features = Callable[[int], np.ndarray]
"""The features `[T, D]` of an utterance, by its number."""


def brought_home(encoder: "BatchEncoder", grouped: Batches, audio: Sequence[np.ndarray], what: str) -> Features:
    """Every batch is awaited and its features are in the host's memory."""
    features: dict[int, np.ndarray] = {}
    for batch in grouped:
        encoded = encoder.encode([audio[i] for i in batch])
        features |= {i: frames[what] for i, frames in zip(batch, encoded, strict=True)}
    return features.__getitem__


def left_on_device(encoder: "BatchEncoder", grouped: Batches, audio: Sequence[np.ndarray], what: str) -> Features:
    """Nothing is awaited, and the features (float32) stay where they were computed until they are asked for."""
    import torch

    features: dict[int, torch.Tensor] = {}
    with torch.inference_mode():
        for batch in grouped:
            encoded, _ = encoder.frames(encoder.loaded, [audio[i] for i in batch])
            features |= {i: frames[what] for i, frames in zip(batch, encoded, strict=True)}
    return lambda i: features[i].cpu().numpy()


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
