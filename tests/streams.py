"""Stores to stream from, small and made of numbers that say where they belong."""

import os
import signal
import time
from collections.abc import Sequence

import numpy as np
from encodeonce.store import FeatureStore, FeatureWriter, NewUtterance, Output
from encodeonce.store.objects import StorePath

SAMPLES_PER_FRAME = 320


def frames_of(count: int, seed: int = 0, least: int = 20, most: int = 200) -> list[int]:
    """Lengths of utterances."""
    return np.random.default_rng(seed).integers(least, most, count).tolist()


def values_of(name: str, frames: int, width: int, dtype: str) -> np.ndarray:
    """What a stored output holds: another matrix for every utterance."""
    rng = np.random.default_rng([len(name), *name.encode()])
    if dtype == "uint16":
        return rng.integers(0, 40_000, (frames, width)).astype(np.uint16)
    return rng.standard_normal((frames, width)).astype(np.float32)


def make_store(
    folder: StorePath,
    lengths: Sequence[int],
    outputs: Sequence[Output] = (Output("layer-9", 32, "float16", "hidden_states[9]"),),
    split: str = "dev",
    encoder: str = "toy",
    samples_per_frame: int = SAMPLES_PER_FRAME,
    first: int = 0,
    prefix: str = "utt",
    shard_frames: int = 1024,
) -> FeatureStore:
    """A split of utterances utt-000 ..., two speakers, in shards of a few utterances."""
    utterances = [
        NewUtterance(
            f"{prefix}-{i:03d}",
            frames,
            text=f"words of {i}",
            speaker="ab"[i % 2],
            metadata={"take": i},
        )
        for i, frames in enumerate(lengths, first)
    ]
    writer = FeatureWriter(
        folder, encoder, split, outputs, {"made": "for tests"}, 16_000, samples_per_frame, shard_frames=shard_frames
    )
    frames_by_id = {u.id: u.frames for u in utterances}
    writer.write(
        utterances, lambda name: {o.name: values_of(name, frames_by_id[name], o.width, o.dtype) for o in outputs}
    )
    return FeatureStore(writer.path)


def status_of(child: int) -> int | None:
    """How a forked process ended; None where it hung, and is gone now."""
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
