"""Every utterance of a store in the order of the rows, shard by shard: what exports and statistics go over."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from encodeonce.store.layout import Output
from encodeonce.store.quantize import restore
from encodeonce.store.reader import FeatureStore
from encodeonce.store.split import Split


def by_shard(part: Split) -> list[np.ndarray]:
    """The positions of a split's utterances, an array for each shard that holds any."""
    indices = np.arange(len(part))
    return np.split(indices, np.flatnonzero(np.diff(part.shards)) + 1) if len(part) else []


def values_of(part: Split, output: Output, indices: np.ndarray) -> Iterator[np.ndarray]:
    """The frames `[T, D]` of utterances, fetched at once; int8 is restored as float32, one utterance at a time."""
    stored = part.views(output, indices)
    return iter(stored) if output.dtype != "int8" else map(restore, stored, part.affines(output, indices))


def walk(store: FeatureStore, output: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Each utterance's row of the table, and its frames `[T, D]`; one shard is in memory at a time."""
    for part in store.parts:
        for indices in by_shard(part):
            records = part.table.slice(int(indices[0]), len(indices)).to_pylist()
            yield from zip(records, values_of(part, part.outputs[output], indices), strict=True)
