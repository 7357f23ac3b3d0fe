"""Commit records: a shard counts when its record stands, and not before."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from encodeonce.store.errors import DamagedError
from encodeonce.store.files import read_json, versions_in
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


def commit_versions(paths: SplitPaths) -> dict[int, Any]:
    """What tells a commit record from the one that replaces it, by shard; the records unread."""
    found = {name.removesuffix(".json"): version for name, version in versions_in(paths.root / "commits").items()}
    return {int(shard): version for shard, version in found.items() if shard.isdigit()}


def read_commits(paths: SplitPaths, shards: Iterable[int] | None = None) -> dict[int, Commit]:
    """The commit records of a split, or of some shards that have one, by shard."""
    wanted = sorted(committed_shards(paths) if shards is None else shards)
    with ThreadPoolExecutor(RECORDS_IN_FLIGHT) as pool:
        return dict(zip(wanted, pool.map(_read_commit, map(paths.commit, wanted)), strict=True))


def _read_commit(path: StorePath) -> Commit:
    try:
        return Commit(**read_json(path))
    except TypeError as error:
        raise DamagedError(f"{path} is no commit record: {error}; take it away, and the shard is made again") from error
