"""Which shards a stream cannot read: looked for before its first epoch, met later, agreed upon by the ranks."""

import logging
import sys
from collections.abc import Sequence
from threading import Lock
from typing import Any

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.streaming.selection import Source

log = logging.getLogger(__name__)

Lost = dict[tuple[int, int], str]
"""What is wrong with shards, by (source, shard of it)."""


class Damage:
    """The damaged shards of a stream's sources. Only what is certain counts: a shard that is gone, cut short, or not what
    its index or checksum says; what may pass (a network, a permission) stays an error.

    Args:
        together: whether torch.distributed runs and the stream's ranks are its ranks; then each knows what any one found.
        alone: whether there is one rank only.
    """

    def __init__(self, sources: Sequence[Source], together: bool, alone: bool) -> None:
        self._sources, self._together, self._alone = sources, together, alone
        self._shards = [source.by_shard() for source in sources]
        self._keys = [source.shard_keys() for source in sources]
        self._found: Lost | None = None
        self._met: Lost = {}
        self._lock = Lock()
        self.skipped: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def readable(self) -> np.ndarray:
        """Which utterances lie in whole shards, `[N]`, for an epoch that begins now; the same on all ranks.

        Every shard is looked at when a stream begins. What a rank met since then counts from the next epoch on, if the
        ranks can tell each other.

        Raises:
            StoreError: nothing can be read.
        """
        if self._found is None:
            self._found = {}
            for number in range(len(self._sources)):
                everything = list(range(len(self._shards[number])))
                self._found |= self._look(number, everything, thorough=False)
        if self._together or self._alone:
            self._found |= self._met
        if self._together:
            distributed = sys.modules["torch.distributed"]
            everybody: list[Lost] = [{}] * distributed.get_world_size()
            distributed.all_gather_object(everybody, self._found)
            for lost in everybody:
                self._found |= lost
        self._tell(self._found)
        whole = self._outside(self._found, np.arange(len(self._sources[0].indices)))
        if not whole.any():
            raise StoreError(f"nothing is left to stream, every shard is damaged: {next(iter(self._found.values()))}")
        return whole

    def outside(self, members: np.ndarray) -> np.ndarray:
        """Which of some utterances are in no shard that was met damaged since the epoch began."""
        with self._lock:
            met = dict(self._met)
        return self._outside(met, members)

    def meet(self, members: np.ndarray) -> None:
        """Look at all shards of utterances that could not be read."""
        new: Lost = {}
        with self._lock:
            for number, keys in enumerate(self._keys):
                concerned = [key for key in np.unique(keys[members]).tolist() if (number, key) not in self._met]
                new |= self._look(number, concerned, thorough=True)
            self._met |= new
        self._tell(new)

    def _look(self, number: int, keys: Sequence[int], thorough: bool) -> Lost:
        source, shards = self._sources[number], self._shards[number]
        lost: Lost = {}
        for part in dict.fromkeys(shards[key][0] for key in keys):
            mine = {shards[key][1]: key for key in keys if shards[key][0] is part}
            problems = part.problems(source.spec, list(mine), thorough)
            lost |= {(number, mine[shard]): problem for shard, problem in problems.items()}
        return lost

    def _outside(self, lost: Lost, members: np.ndarray) -> np.ndarray:
        kept = np.ones(len(members), bool)
        for number, keys in enumerate(self._keys):
            mine = [key for source, key in lost if source == number]
            if mine:
                kept &= ~np.isin(keys[members], mine)
        return kept

    def _tell(self, lost: Lost) -> None:
        """Name what is skipped, once a shard."""
        for (number, key), problem in lost.items():
            source, (_, _, group) = self._sources[number], self._shards[number][key]
            ids = [source.store.id(int(i)) for i in source.indices[group]]
            if not self.skipped.keys() >= set(ids):
                log.warning("%d utterances are skipped: %s", len(ids), problem)
                self.skipped |= dict.fromkeys(ids, problem)
