"""The batches of a decoding: the longest utterances first, so that too little memory shows at once, and read ahead by a thread."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from encodeonce.store.reader import FeatureStore
from torch import Tensor

FRAMES_PER_BATCH, UTTERANCES_PER_BATCH = 4000, 64
"""Where nobody says otherwise."""


@dataclass(frozen=True)
class FeatureBatch:
    """Utterances that are decoded together.

    Args:
        positions: in the store, `[B]`.
        outputs: `[B, T, D]` float32, or codes `[B, T, K]` int32, zero after each utterance's frames.
        lengths: `[B]` frames.
    """

    positions: np.ndarray
    outputs: list[Tensor]
    lengths: Tensor


def plan_batches(frames: np.ndarray, frames_per_batch: int, utterances_per_batch: int) -> list[np.ndarray]:
    """Utterances, by their place in frames `[N]`, as batches from the longest to the shortest.

    Padding included a batch has `frames_per_batch` frames at most, unless it is one longer utterance.
    """
    order = np.argsort(-frames.astype(np.int64), kind="stable")
    batches: list[np.ndarray] = []
    begin = 0
    while begin < len(order):
        size = max(1, min(frames_per_batch // int(frames[order[begin]]), utterances_per_batch))
        batches.append(order[begin : begin + size])
        begin += size
    return batches


def read_batches(store: FeatureStore, outputs: Sequence[str], batches: Sequence[np.ndarray]) -> Iterator[FeatureBatch]:
    """Batches of positions with their features, the next one being read while one is worked on.

    Raises:
        DamagedError: a shard cannot be read.
    """
    with ThreadPoolExecutor(1, "read") as reader:
        ahead: Future[FeatureBatch] | None = None
        for number, positions in enumerate(batches):
            batch = (ahead or reader.submit(_read, store, outputs, positions)).result()
            ahead = reader.submit(_read, store, outputs, batches[number + 1]) if number + 1 < len(batches) else None
            yield batch


def utterance_batches(
    store: FeatureStore, outputs: Sequence[str], positions: np.ndarray, device: torch.device | str
) -> Iterator[tuple[list[int], FeatureBatch]]:
    """Utterances of a store with their features on a device, the longest first, each batch with its places in `positions` `[N]`.

    Raises:
        StoreError: no such output, or a damaged shard.
    """
    plan = plan_batches(store.frames[positions], FRAMES_PER_BATCH, UTTERANCES_PER_BATCH)
    for places, batch in zip(plan, read_batches(store, outputs, [positions[row] for row in plan]), strict=True):
        values = [output.to(device) for output in batch.outputs]
        yield places.tolist(), FeatureBatch(batch.positions, values, batch.lengths.to(device))


def _read(store: FeatureStore, outputs: Sequence[str], positions: np.ndarray) -> FeatureBatch:
    read = [store.read(positions, name) for name in outputs]
    kinds = [np.int32 if values.dtype == np.uint16 else np.float32 for values, _ in read]
    tensors = [torch.from_numpy(values.astype(kind, copy=False)) for (values, _), kind in zip(read, kinds, strict=True)]
    return FeatureBatch(positions, tensors, torch.from_numpy(read[0].lengths.astype(np.int64)))
