"""Scores of pairs of texts, kept in a file as they are computed: a killed run goes on from them, and the next one reads them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from encodeonce.store.files import explain, make_folder

Pair = tuple[str, str]


class KeptScores:
    """Scores of pairs, as JSON lines `{"of": ..., "scores": {pair's hash: [number, ...], ...}}`.

    A line has the pairs that were computed together, so that of those a killed run leaves all or none, and the next run computes the same
    batches: the numbers are the same to the last bit. A line that is not whole is computed again; one `of` something else stays unread.

    Args:
        of: what scores depend on beside the texts, as JSON.

    Raises:
        StoreError: the file cannot be read.
    """

    def __init__(self, path: Path, of: Mapping[str, Any]) -> None:
        self.path, self._of = path, dict(of)
        try:
            *lines, half = path.read_bytes().split(b"\n") if path.exists() else (b"",)
        except OSError as error:
            raise explain(error, path) from error
        self._before = b"\n" if half else b""
        self._scores = {key: values for line in lines for key, values in self._read(line).items()}

    def find(self, pairs: Iterable[Pair]) -> dict[Pair, list[float]]:
        """Of these pairs, those that are kept."""
        keys = {pair: _key(pair) for pair in pairs}
        return {pair: self._scores[key] for pair, key in keys.items() if key in self._scores}

    def append(self, pairs: Sequence[Pair], values: Sequence[Sequence[float]]) -> None:
        """Keep the scores of some that were computed together; a kill after it loses none of them.

        Raises:
            StoreError: the file cannot be written.
        """
        scores = {_key(pair): list(row) for pair, row in zip(pairs, values, strict=True)}
        line = json.dumps({"of": self._of, "scores": scores}).encode()
        make_folder(self.path.parent)
        try:
            with self.path.open("ab") as file:
                file.write(self._before + line + b"\n")
        except OSError as error:
            raise explain(error, self.path) from error
        self._before = b""

    def _read(self, line: bytes) -> dict[str, list[float]]:
        try:
            record = json.loads(line)
        except ValueError:
            return {}
        return record["scores"] if isinstance(record, dict) and record.get("of") == self._of else {}


def _key(pair: Pair) -> str:
    return sha256(json.dumps(pair).encode()).hexdigest()[:32]
