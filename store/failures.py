"""failures.jsonl of a split: what could not be stored, each with its reason; the next run tries it again."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from encodeonce.store.errors import DamagedError
from encodeonce.store.files import atomic_write
from encodeonce.store.layout import SplitPaths


def read_failures(paths: SplitPaths) -> list[dict[str, Any]]:
    """The entries of failures.jsonl: each has an `id` and a `reason`.

    Raises:
        DamagedError: it is something else.
    """
    if not paths.failures.exists():
        return []
    try:
        entries = [json.loads(line) for line in paths.failures.read_bytes().splitlines()]
        if not all(isinstance(entry, dict) and "id" in entry for entry in entries):
            raise ValueError("a line is no object with an id")
    except ValueError as error:
        raise DamagedError(f"{paths.failures} cannot be read: {error}; take it away to go on") from error
    return entries


def write_failures(paths: SplitPaths, failures: Iterable[Mapping[str, Any]]) -> None:
    """Replace failures.jsonl, in the order of ids; nothing failed, no file."""
    lines = sorted(json.dumps(entry) for entry in failures)  # ASCII: names of files may be no Unicode
    if not lines:
        paths.failures.unlink(missing_ok=True)
        return
    with atomic_write(paths.failures, paths.scratch) as file:
        file.write(("\n".join(lines) + "\n").encode())
