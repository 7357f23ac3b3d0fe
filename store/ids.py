"""Finding utterances by id without a Python object for each of them."""

import difflib
from typing import Any

import numpy as np
import pyarrow as pa

SLICE = 1 << 16
MOST_COMPARED = 50_000
"""Ids among which close matches are looked for."""


class IdIndex:
    """Positions of ids in an Arrow column: 64-bit hashes, sorted, 16 bytes an utterance. Made when it is first asked."""

    def __init__(self, ids: pa.ChunkedArray) -> None:
        self._ids = ids
        self._hashes: np.ndarray | None = None
        self._positions: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_ids": self._ids}  # Python salts the hashes of strings by process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_ids"])

    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        if self._hashes is None or self._positions is None:
            hashes = np.empty(len(self._ids), np.int64)
            for first in range(0, len(hashes), SLICE):
                names = self._ids.slice(first, SLICE).to_pylist()
                hashes[first : first + len(names)] = np.fromiter(map(hash, names), np.int64, len(names))
            self._positions = np.argsort(hashes, kind="stable").astype(np.int64)
            self._hashes = hashes[self._positions]
        return self._hashes, self._positions

    def find(self, name: str) -> int | None:
        """The position of an id, None where it is not there."""
        hashes, positions = self._sorted()
        at, value = int(np.searchsorted(hashes, hash(name))), hash(name)
        while at < len(hashes) and hashes[at] == value:
            if self._ids[int(positions[at])].as_py() == name:
                return int(positions[at])
            at += 1
        return None

    def close_to(self, name: str) -> list[str]:
        """Up to three ids that are spelt nearly like a name, best first; of a huge store those that begin alike."""
        names = self._ids
        if len(names) > MOST_COMPARED:
            import pyarrow.compute as pc

            begin = name[: min(8, len(name))]
            names = names.filter(pc.call_function("starts_with", [names], pc.MatchSubstringOptions(begin)))
            names = names.slice(0, MOST_COMPARED)
        return difflib.get_close_matches(name, names.to_pylist(), 3)

    def first_double(self) -> str | None:
        """An id that is there more than once."""
        hashes, positions = self._sorted()
        seen: dict[int, set[str]] = {}
        for at in np.flatnonzero(hashes[1:] == hashes[:-1]).tolist():
            names = seen.setdefault(int(hashes[at]), {self._ids[int(positions[at])].as_py()})
            name = self._ids[int(positions[at + 1])].as_py()
            if name in names:
                return name
            names.add(name)
        return None
