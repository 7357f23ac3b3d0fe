"""What the pipeline works on: a shard to make, and what became of it."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
from encodeonce.extract.corpora.base import Utterance
from encodeonce.store.derive.chain import Chain
from encodeonce.store.files import explain, make_folder
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
    chain: Chain
    """How the outputs come to be: what the encoder gives, and what is derived of that."""
    expected_hashes: Mapping[str, str]
    """Audio hashes that utterances must have, for outputs added to a shard that stands."""

    @property
    def bytes(self) -> int:
        """What the values of all outputs take up."""
        row_bytes = sum(output.width * np.dtype(output.dtype).itemsize for output in self.outputs)
        return row_bytes * sum(place.frames for place in self.places)


class Spool:
    """Room on disk for the values of one shard, for shards larger than memory should hold.

    All of it is allocated at once, so that a full disk is an error here and not a signal later.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._lock, self._used = Lock(), 0
        try:
            make_folder(folder)
            with tempfile.TemporaryFile(dir=folder) as file:
                os.posix_fallocate(file.fileno(), 0, size)
                self._room = np.memmap(file, np.uint8, "r+", shape=(size,))
        except OSError as error:
            raise explain(error, folder) from error

    def keep(self, values: np.ndarray) -> np.ndarray:
        """A copy of the values that lies on disk."""
        with self._lock:
            start, self._used = self._used, self._used + values.nbytes
        room = self._room[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
        room[:] = values
        return room


@dataclass
class ShardResult:
    """What became of a shard's utterances, ready for the writer."""

    task: ShardTask
    items: dict[str, dict[str, ShardItem]] = field(default_factory=dict)
    noise: dict[str, list[float]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    copied: set[str] = field(default_factory=set)
    not_storable: set[str] = field(default_factory=set)
    """Those of the failed whose features no output of the task can hold."""
    spool: Spool | None = None
