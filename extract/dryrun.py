"""What a run would do, how large it would get and how long it would take, without writing anything."""

import time
from dataclasses import dataclass

import numpy as np
from encodeonce.extract.audio import AudioError, read_audio
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.run import Run
from encodeonce.extract.survey import Survey, survey
from encodeonce.store.writer import SplitWriter

CALIBRATION_SECONDS = 10.0
CALIBRATION_UTTERANCES = 64


@dataclass
class Estimate:
    """What --dry-run foretells for a split. Bytes are those that would be added; hours are of audio."""

    split: str
    store: str
    utterances: int
    hours: float
    to_encode: int
    hours_to_encode: float
    bytes: int
    expected_seconds: float
    failed: int


def estimate(run: Run, split: str) -> Estimate:
    """Survey a split, and time the encoder on a sample of what it would encode."""
    listing = list_corpus(run.request.data, split, run.request.corpus)
    path = run.split_folder(split)
    writer = SplitWriter.look(path, run.attributes(split))
    found = survey(run, listing, writer)
    rate = run.encoder.sample_rate
    places = [place for plan in writer.plans for place in plan.places]
    lacking = {p.id: (p.samples, p.frames) for p in places if p.shard not in writer.commits}
    lacking |= {name: (samples, frames) for name, samples, frames in found.new}
    outputs = {**writer.outputs, **run.outputs}
    added = [output for name, output in run.outputs.items() if name not in writer.outputs]
    live = writer.live_shards()
    again = {p.id: (p.samples, p.frames) for p in places if live.get(p.id) == p.shard} if added else {}
    row_bytes = {o.name: o.width * np.dtype(o.dtype).itemsize for o in outputs.values()}
    size = sum(frames for _, frames in lacking.values()) * sum(row_bytes.values())
    size += sum(frames for _, frames in again.values()) * sum(row_bytes[o.name] for o in added)
    todo = {**again, **lacking}
    known = {p.id: p.samples for p in places} | {name: samples for name, samples, _ in found.new}
    seconds = sum(samples for samples, _ in todo.values()) / rate
    return Estimate(
        split=split,
        store=str(path),
        utterances=len(found.considered) + len(found.problems),
        hours=round(sum(known.get(name, 0) for name in found.considered) / rate / 3600, 4),
        to_encode=len(todo),
        hours_to_encode=round(seconds / 3600, 4),
        bytes=int(size * 1.03),
        expected_seconds=round(seconds / _speed(run, found, list(todo)), 1) if todo else 0.0,
        failed=len(found.failed) + len(found.problems),
    )


def _speed(run: Run, found: Survey, names: list[str]) -> float:
    """Times real time of the encoder on a sample of the utterances, after one to warm up."""
    encoder = run.load(list(run.outputs.values()))
    step = max(1, len(names) // CALIBRATION_UTTERANCES)
    timed: list[tuple[float, float]] = []
    begun = time.perf_counter()
    for name in names[::step]:
        utterance = found.utterances.get(name)
        if utterance is None or time.perf_counter() - begun > CALIBRATION_SECONDS:
            continue
        try:
            samples = read_audio(utterance, run.encoder.sample_rate)
        except AudioError:
            continue
        before = time.perf_counter()
        encoder.encode([run.encoder.prepare(samples)])
        timed.append((len(samples) / run.encoder.sample_rate, time.perf_counter() - before))
    counted = timed[1:] or timed or [(1.0, 1.0)]
    return sum(heard for heard, _ in counted) / sum(spent for _, spent in counted)
