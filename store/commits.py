"""Commit records: a shard counts when its record stands, and not before."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from encodeonce.store.errors import DamagedError
from encodeonce.store.files import read_json
from encodeonce.store.layout import SplitPaths
from encodeonce.store.objects import StorePath

RECORDS_IN_FLIGHT = 16
"""Commit records that are read at the same time."""


@dataclass
class Commit:
    """A commit record: what stands in a shard. `absent` are planned utterances that are not in it."""

    shard: int
    plan: int
    utterances: int
    frames: int
    absent: list[str]
    outputs: dict[str, dict[str, Any]]
    made: dict[str, Any] = field(default_factory=dict)


def committed_shards(paths: SplitPaths) -> list[int]:
    """The numbers of a split's committed shards, the records unread."""
    return sorted(int(path.stem) for path in (paths.root / "commits").glob("*.json") if path.stem.isdigit())


def read_commits(paths: SplitPaths) -> dict[int, Commit]:
    """The commit records of a split, by shard."""
    with ThreadPoolExecutor(RECORDS_IN_FLIGHT) as pool:
        records = pool.map(_read_commit, (paths.root / "commits").glob("*.json"))
        return {record.shard: record for record in sorted(records, key=lambda record: record.shard)}


def _read_commit(path: StorePath) -> Commit:
    try:
        return Commit(**read_json(path))
    except TypeError as error:
        raise DamagedError(f"{path} is no commit record: {error}; take it away, and the shard is made again") from error
