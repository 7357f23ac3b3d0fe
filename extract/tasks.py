"""What makers of shards are given and give back: the split, a shard to make, and what became of it."""

import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from encodeonce.extract.corpora.base import Utterance
from encodeonce.store.files import explain, make_folder
from encodeonce.store.format import ShardItem
from encodeonce.store.layout import Output, SplitAttributes
from encodeonce.store.noise import Ratio
from encodeonce.store.objects import StorePath
from encodeonce.store.plan import Place
from encodeonce.store.staging import Staged
from encodeonce.store.writer import SplitWriter


@dataclass(frozen=True)
class Ground:
    """What everyone who makes shards of a split has to know of it; small, and can be sent along."""

    scratch: StorePath
    """The folder of the split where files lie until they are whole."""
    attributes: SplitAttributes
    root: Path
    """The folder of the corpus, below which audio is named."""
    copy_from: Mapping[int, Mapping[str, int]]
    """By plan: the splits whose features may be copied, and how many shards each had when the plan was made."""

    @property
    def spool_folder(self) -> Path:
        """Where shards larger than memory should hold are put together: on disk, beside the split where that is local."""
        return self.scratch if isinstance(self.scratch, Path) else Path(tempfile.gettempdir())


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

    @property
    def samples(self) -> int:
        """The audio of all places, in samples."""
        return sum(place.samples for place in self.places)


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
class Fates:
    """What became of the utterances of a shard, beside their values: reasons of failures and hashes of audio, by id."""

    failed: dict[str, str] = field(default_factory=dict)
    not_storable: set[str] = field(default_factory=set)
    """Those of the failed whose features no output of the task can hold."""
    hashes: dict[str, str] = field(default_factory=dict)
    copied: set[str] = field(default_factory=set)

    def add(self, other: "Fates") -> None:
        """Take in the fates of more utterances."""
        self.failed |= other.failed
        self.not_storable |= other.not_storable
        self.hashes |= other.hashes
        self.copied |= other.copied


class Finished(ABC):
    """A shard of which every utterance was encoded, copied, or failed.

    Attributes:
        made: with what, for the commit record.
    """

    task: ShardTask
    fates: Fates
    made: Mapping[str, Any]

    @property
    def complete(self) -> bool:
        """Whether it may be committed: every output of a split holds the same utterances, so those that join lack none."""
        return not (self.task.expected_hashes and self.fates.failed)

    @property
    def has_files(self) -> bool:
        """Whether there is anything to write."""
        return self.complete and bool(self.names)

    @property
    def names(self) -> list[str]:
        """The ids of what can be stored, in the order of rows."""
        return [place.id for place in self.task.places if place.id not in self.fates.failed]

    @abstractmethod
    def write(self, writer: SplitWriter) -> None:
        """Write the files of the shard, where that was not done yet. Threads may do so with several shards at a time."""

    @abstractmethod
    def commit(self, writer: SplitWriter, absent: Sequence[str]) -> None:
        """Make the written shard count, without the absent ones."""


@dataclass
class ShardResult(Finished):
    """A shard in memory."""

    task: ShardTask
    made: Mapping[str, Any]
    items: dict[str, dict[str, ShardItem]] = field(default_factory=dict)
    noise: dict[str, list[Ratio]] = field(default_factory=dict)
    fates: Fates = field(default_factory=Fates)
    spool: Spool | None = None
    written: Staged | None = None

    def ordered(self) -> dict[str, list[ShardItem]]:
        """The items of each output, in the order of rows."""
        return {o.name: [self.items[o.name][name] for name in self.names] for o in self.task.outputs}

    @property
    def specs(self) -> dict[str, Output]:
        """The outputs by name."""
        return {output.name: output for output in self.task.outputs}

    def write(self, writer: SplitWriter) -> None:
        self.written = writer.write_files(self.task.shard, self.ordered(), self.specs)

    def commit(self, writer: SplitWriter, absent: Sequence[str]) -> None:
        assert self.written is not None
        writer.count(self.written, self.task.plan, absent, self.noise, self.made)


@dataclass
class StagedShard(Finished):
    """A shard that another process wrote: its files lie in a folder of the split's scratch, `staged` tells of them.

    Nothing is staged where no utterance is left, or where it may not be committed.
    """

    task: ShardTask
    made: Mapping[str, Any]
    fates: Fates
    noise: Mapping[str, Sequence[Ratio]]
    folder: StorePath
    staged: Staged | None

    def write(self, writer: SplitWriter) -> None:
        pass  # the other process did

    def commit(self, writer: SplitWriter, absent: Sequence[str]) -> None:
        assert self.staged is not None
        writer.adopt(self.folder, self.staged, self.task.plan, absent, self.noise, self.made)
