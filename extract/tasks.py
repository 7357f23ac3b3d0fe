"""What the pipeline works on: a shard to make, and what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from encodeonce.extract.corpora.base import Utterance
from encodeonce.store.format import ShardItem
from encodeonce.store.layout import Output
from encodeonce.store.plan import Place


@dataclass(frozen=True)
class ShardTask:
    """One shard to make: its places in the order of rows, their utterances, and the outputs it lacks."""

    shard: int
    plan: int
    places: Sequence[Place]
    utterances: Mapping[str, Utterance]
    outputs: Sequence[Output]
    expected_hashes: Mapping[str, str]
    """Audio hashes that utterances must have, for outputs added to a shard that stands."""

    @property
    def bytes(self) -> int:
        """What the values of all outputs take up."""
        row_bytes = sum(output.width * np.dtype(output.dtype).itemsize for output in self.outputs)
        return row_bytes * sum(place.frames for place in self.places)


@dataclass
class ShardResult:
    """What became of a shard's utterances, ready for the writer."""

    task: ShardTask
    items: dict[str, dict[str, ShardItem]] = field(default_factory=dict)
    noise: dict[str, list[float]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    copied: set[str] = field(default_factory=set)
