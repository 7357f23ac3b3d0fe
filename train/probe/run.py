"""One probe: an output of a store, trained on, and measured on the held-out utterances."""

import math
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from encodeonce.store.errors import StoreError
from encodeonce.store.extras import extra
from encodeonce.store.moments import Moments, Usage, measure
from encodeonce.store.progress import Advance, silent
from encodeonce.store.reader import FeatureStore
from encodeonce.store.streaming.stream import Stream
from encodeonce.train.probe.characters import Characters
from encodeonce.train.probe.ctc import recognise, train
from encodeonce.train.probe.head import Probe
from encodeonce.train.probe.layers import layer_of
from encodeonce.train.probe.subset import Subset, emissions_a_frame


@dataclass(frozen=True, slots=True)
class ProbeOptions:
    """How every probe is trained; `batch_seconds` is the audio of a batch, padding included."""

    steps: int = 800
    seed: int = 0
    batch_seconds: float = 40.0
    learning_rate: float = 3e-3
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_seconds", "learning_rate"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise StoreError(f"{name} {value}: take a number above 0")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise StoreError(f"device {self.device!r}: take cpu, cuda or cuda:N")


@dataclass(frozen=True, slots=True)
class Probed:
    """What a probe of an output came to on the held-out utterances."""

    output: str
    layer: int | None
    """The number of the layer that the output holds; None: it is no layer."""
    width: int
    dtype: str
    loss: float
    """CTC loss in nats a character."""
    cer: float
    """Characters to change over the characters of all texts; greedy decoding, no language model."""
    wer: float
    """The same of words."""
    seconds: float


def probe(store: FeatureStore, output: str, subset: Subset, options: ProbeOptions, advance: Advance = silent) -> Probed:
    """Train a probe on an output and measure it: deterministic on a CPU. `advance` is told of steps that are done.

    Raises:
        StoreError: no such output or device, or jiwer is not installed.
    """
    with extra("evaluate"):
        import jiwer

    begun, spec = time.perf_counter(), store.spec(output)
    learning, measuring = (
        _stream(store, output, texts, options, device=options.device, dtype="float32")
        for texts in (subset.training, subset.held_out)
    )
    characters = Characters.of(subset.training.values())
    seen = _measure(_stream(store, output, subset.training, options, device=None), spec.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Probe(seen, len(characters), emissions_a_frame(store.frame_rate)).to(options.device)
    train(model, learning, subset.training, characters, options.steps, options.learning_rate, advance)
    loss, heard = recognise(model, measuring, subset.held_out, characters)
    if not math.isfinite(loss):
        raise StoreError(
            f"the probe of {output} came to a loss of {loss}; take a learning rate below {options.learning_rate:g}"
        )
    said, found = list(subset.held_out.values()), [heard[utterance] for utterance in subset.held_out]
    cer, wer = float(jiwer.cer(said, found)), float(jiwer.wer(said, found))
    return Probed(output, layer_of(spec), spec.width, spec.dtype, loss, cer, wer, time.perf_counter() - begun)


def _stream(store: FeatureStore, output: str, ids: Iterable[str], options: ProbeOptions, **form: Any) -> Stream:
    """Some utterances of an output; their batches are the same for every output."""
    ids = list(ids)
    longest = int(store.frames[store.indices(ids)].max())
    return store.stream(
        frames_per_batch=max(longest, math.ceil(options.batch_seconds * store.frame_rate)),
        seed=options.seed,
        where=pc.field("id").isin(ids),
        outputs=output,
        columns=(),
        rank=0,
        world_size=1,
        **form,
    )


def _measure(stream: Stream, dtype: str) -> Moments | Usage:
    """What the frames of an epoch are like."""
    frames = (
        np.asarray(values[:n]) for batch in stream for values, n in zip(batch.features, batch.lengths, strict=True)
    )
    return measure(frames, dtype)
