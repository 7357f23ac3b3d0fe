"""Training a k-means over the frames of a store: first centres, mini-batches, and what came of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.kmeans import MOST_CLUSTERS, KMeans
from encodeonce.store.layout import SET_FILE, FeatureSet, read_feature_set
from encodeonce.store.objects import StorePath
from encodeonce.store.progress import Advance, silent
from encodeonce.store.reader import FeatureStore
from encodeonce.store.stats import content_hash
from encodeonce.store.streaming.form import Form
from encodeonce.train.kmeans.first import first_centres, method
from encodeonce.train.kmeans.frames import Frames
from encodeonce.train.kmeans.minibatch import MiniBatch, ScikitMiniBatch
from encodeonce.train.kmeans.usage import Usage, measure

SAMPLE_BATCHES = 3
"""The first centres are chosen among the frames of so many mini-batches, as scikit-learn does (its init_size)."""

Progress = Callable[[str, int, str], AbstractContextManager[Advance]]


@contextmanager
def unseen(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Progress that nobody sees."""
    yield silent


@dataclass(frozen=True, slots=True)
class KMeansOptions:
    """How a k-means is trained; `frames` limits the training frames, and a mini-batch has as many frames as clusters at least."""

    clusters: int = 500
    frames: int | None = None
    batch_frames: int = 10_000
    steps: int = 500
    seed: int = 0


def request(store: FeatureStore, output: str | None, options: KMeansOptions) -> dict[str, Any]:
    """All that a k-means depends on, as JSON: the options, the output, the utterances and their features."""
    return {
        **asdict(options),
        "output": store.spec(output).to_json(),
        "features": store.fingerprint,
        "contents": [content_hash(part) for part in store.parts],
    }


def train(
    store: FeatureStore,
    output: str | None = None,
    options: KMeansOptions | None = None,
    device: str = "cpu",
    progress: Progress = unseen,
) -> KMeans:
    """Train a k-means over an output of a store; on a CPU a function of the options and the store alone.

    Raises:
        StoreError: the output holds codes, or there are fewer frames than clusters, or clusters stay empty, or scikit-learn or
            the device is not there.
    """
    options = options or KMeansOptions()
    if not 1 <= options.clusters <= MOST_CLUSTERS:
        raise StoreError(f"{options.clusters:,} clusters: take 1 to {MOST_CLUSTERS:,}, units are uint16")
    if options.frames is not None and options.frames < options.clusters:
        raise StoreError(
            f"{options.clusters:,} clusters of at most {options.frames:,} frames: take fewer --clusters, or more --frames"
        )
    begun, frames = time.perf_counter(), Frames(store, output, options.frames, options.seed)
    if frames.count < options.clusters:
        raise StoreError(
            f"{options.clusters:,} clusters of {frames.count:,} frames ({frames.utterances} utterances): take fewer --clusters, "
            f"or more --frames"
        )
    source = source_of(store, frames)
    size = min(max(options.batch_frames, options.clusters), frames.count)
    model = begin(frames, size, options, device)
    with progress(
        f"Training {options.clusters:,} clusters of {frames.spec.name}", options.steps * size, "frames"
    ) as advance:
        learn(model, frames, size, options.steps, advance)
    usage, moved = finish(model, frames, size, options, progress)
    if usage.empty.size:
        raise StoreError(
            f"{usage.empty.size:,} of {options.clusters:,} clusters stay empty, though put onto the farthest frames: "
            f"take fewer --clusters, or more --frames"
        )
    facts = {
        "frames": frames.count,
        "utterances": frames.utterances,
        "inertia": usage.inertia,
        "perplexity": usage.perplexity,
        "first_centres": method(options.clusters),
        "moved_centres": moved,
        "device": device,
        "seconds": round(time.perf_counter() - begun, 1),
        "request": request(store, output, options),
    }
    return KMeans(model.centres, usage.counts, frames.spec.what, source, facts)


def begin(frames: Frames, size: int, options: KMeansOptions, device: str) -> MiniBatch:
    """A k-means whose centres are frames of the first mini-batches: by scikit-learn on a CPU, by torch elsewhere."""
    Form.of(device, None)
    batches = SAMPLE_BATCHES if method(options.clusters) == "k-means++" else 2
    count = min(batches * size, frames.count)
    sample = np.concatenate(list(islice(frames.batches(size, epochs=1), -(-count // size))))[:count]
    centres = first_centres(sample, options.clusters, options.seed)
    if device == "cpu":
        return ScikitMiniBatch(centres, options.seed)
    from encodeonce.train.kmeans.on_device import TorchMiniBatch

    return TorchMiniBatch(centres, options.seed, device)


def learn(model: MiniBatch, frames: Frames, size: int, steps: int, advance: Advance) -> None:
    """Let a model learn from the first mini-batches, epoch after epoch."""
    for batch in islice(frames.batches(size), steps):
        model.step(batch)
        advance(len(batch))


def finish(
    model: MiniBatch, frames: Frames, size: int, options: KMeansOptions, progress: Progress
) -> tuple[Usage, int]:
    """Assign every frame; put empty clusters onto the farthest frames and learn on; what came of it, and how many were moved.

    The second time centres are moved they stay where they are put, so that each wins the frame that it is on.
    """

    def look() -> Usage:
        with progress("Assigning frames", frames.count, "frames") as advance:
            return measure(model, frames.batches(size, epochs=1), advance)

    usage, moved = look(), 0
    for steps in (min(options.steps, -(-frames.count // size)), 0):
        if not usage.empty.size:
            break
        clusters = usage.empty[: len(usage.farthest)]
        model.move(clusters, usage.farthest[: len(clusters)])
        with progress(f"Refining {len(clusters):,} empty clusters", steps * size, "frames") as advance:
            learn(model, frames, size, steps, advance)
        moved += len(clusters)
        usage = look()
    return usage, moved


def source_of(store: FeatureStore, frames: Frames) -> dict[str, Any]:
    """Where the frames are from: `KMeans.source`.

    Raises:
        StoreError: the splits lie in no feature set.
    """
    found = feature_set_of(store.path)
    return {
        "encoder": found.encoder,
        "source": found.provenance.get("source", found.encoder),
        "fingerprint": found.fingerprint,
        "identity": found.identity,
        "output": frames.spec.to_json(),
    }


def feature_set_of(split: StorePath) -> FeatureSet:
    """The feature set that a split lies in."""
    for folder in split.resolve().parents:
        if (folder / SET_FILE).is_file():
            return read_feature_set(folder)
    raise StoreError(f"{split} lies in no feature set: no {SET_FILE} above it; units need the encoder's identity")
