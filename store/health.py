"""Is a store whole? `verify` reads and reports, `repair` sets damaged shards aside so that extraction fills them again."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.files import make_folder, read_json
from encodeonce.store.format import ABSENT, chunk_frames, read_index
from encodeonce.store.layout import FeatureSet, SplitAttributes, SplitPaths, published_outputs, read_attributes
from encodeonce.store.plan import Place, read_plans
from encodeonce.store.table import read_table
from encodeonce.store.writer import Commit, SplitWriter, read_commits


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as recorded: where, what was expected, what is there. `shard` is the damaged one, if one is."""

    path: Path
    expected: str
    found: str
    shard: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """What a verification looked at, and what it found wrong."""

    split: Path
    shards: int
    utterances: int
    bytes_read: int
    findings: list[Finding]


def verify_split(feature_set: FeatureSet, path: Path, quick: bool = False, read_data: float = 0.0) -> Check:
    """Compare a split with its records, read-only.

    Args:
        quick: sizes and tables only; by default the indices of the shards are read and checked too.
        read_data: the share of the shards, 0 to 1, whose every byte is read and compared with its sha256.
    """
    paths = SplitPaths(path)
    try:
        attributes = read_attributes(paths.group)
        outputs = published_outputs(paths)
        commits = read_commits(paths)
        places = _places(paths)
    except StoreError as error:
        return Check(path, 0, 0, 0, [Finding(path, "readable records", str(error))])
    findings: list[Finding] = []
    if attributes.fingerprint != feature_set.fingerprint:
        findings.append(Finding(paths.group, f"fingerprint {feature_set.fingerprint}", attributes.fingerprint))
    findings += _check_table(paths, commits, set(outputs), places)
    shards = max((s for s, c in commits.items() if c.outputs.keys() >= outputs.keys()), default=-1) + 1
    for output in outputs.values():
        array = paths.array(output.name) / "zarr.json"
        expected, found = [shards * attributes.shard_frames, output.width], read_json(array)["shape"]
        if expected != found:
            findings.append(Finding(array, f"shape {expected}", f"shape {found}"))
    files = []
    for shard, commit in commits.items():
        for name, entry in commit.outputs.items():
            files.append((paths.shard(name, shard), entry, shard, name, False))
            if "affine" in entry:
                files.append((paths.affine_shard(name, shard), entry["affine"], shard, name, True))
    every = round(1 / read_data) if read_data > 0 else 0
    widths = {name: output.width for name, output in outputs.items()}

    def check(number: int) -> tuple[list[Finding], int]:
        file, entry, shard, name, affine = files[number]
        wrong = list(_check_size(file, entry, shard))
        if not wrong and not quick and name in widths:
            absent = set(commits[shard].absent)
            present = [place for place in places.get(shard, []) if place.id not in absent]
            wrong = list(_check_index(file, attributes, widths[name], present, shard, affine))
        if wrong or not every or number % every:
            return wrong, 0
        with open(file, "rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if digest != entry["sha256"]:
            wrong.append(Finding(file, f"sha256 {entry['sha256']}", f"sha256 {digest}", shard))
        return wrong, entry["size"]

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(check, range(len(files))))
    findings += [finding for wrong, _ in results for finding in wrong]
    utterances = sum(commit.utterances for commit in commits.values())
    return Check(path, len(commits), utterances, sum(read for _, read in results), findings)


def _places(paths: SplitPaths) -> dict[int, list[Place]]:
    shards: dict[int, list[Place]] = {}
    for plan in read_plans(paths.plans):
        for place in plan.places:
            shards.setdefault(place.shard, []).append(place)
    return shards


def _check_size(file: Path, entry: dict, shard: int) -> Iterator[Finding]:
    try:
        size = file.stat().st_size
    except OSError as error:
        yield Finding(file, f"{entry['size']} bytes", (error.strerror or str(error)).lower(), shard)
        return
    if size != entry["size"]:
        yield Finding(file, f"{entry['size']} bytes", f"{size} bytes", shard)


def _check_index(
    file: Path, attributes: SplitAttributes, width: int, places: list[Place], shard: int, affine: bool
) -> Iterator[Finding]:
    size = file.stat().st_size
    try:
        tail = np.memmap(file, np.uint8, "r")
        index = read_index(tail, attributes.shard_frames, width, str(file))
    except DamagedError as error:
        yield Finding(file, "an index whose checksum holds", str(error), shard)
        return
    chunk = chunk_frames(width)
    used = index[:, 0] != ABSENT
    expected = np.zeros(len(index), bool)
    for place in places:
        first = place.row % attributes.shard_frames // chunk
        expected[first : first + (1 if affine else -(-place.frames // chunk))] = True
    if not np.array_equal(used, expected):
        yield Finding(file, f"{expected.sum()} chunks of {len(places)} utterances", f"{used.sum()} chunks", shard)
    elif used.any() and int(index[used].sum(axis=1).max()) > size:
        yield Finding(file, "chunks inside the file", f"a chunk that ends past its {size} bytes", shard)


def _check_table(
    paths: SplitPaths, commits: dict[int, Commit], outputs: set[str], places: dict[int, list[Place]]
) -> Iterator[Finding]:
    complete = {shard for shard, commit in commits.items() if outputs and outputs <= commit.outputs.keys()}
    if not complete and not paths.table.exists():
        return
    try:
        table = read_table(paths.table)
    except StoreError as error:
        yield Finding(paths.table, "a table of utterances", str(error))
        return
    rows = {
        row["id"]: (row["shard"], row["row"], row["frames"])
        for row in table.select(["id", "shard", "row", "frames"]).to_pylist()
    }
    if len(rows) != table.num_rows:
        yield Finding(paths.table, f"{table.num_rows} different ids", f"{len(rows)} different ids")
    promised = {}
    for shard in sorted(complete):
        absent = set(commits[shard].absent)
        promised |= {p.id: (p.shard, p.row, p.frames) for p in places.get(shard, []) if p.id not in absent}
    if missing := sorted(promised.keys() - rows.keys()):
        yield Finding(paths.table, f"{len(promised)} utterances", f"{len(missing)} missing, e.g. {missing[0]}")
    if strange := sorted(rows.keys() - promised.keys()):
        yield Finding(
            paths.table, f"{len(promised)} utterances", f"{len(strange)} in no committed shard, e.g. {strange[0]}"
        )
    moved = sorted(name for name in rows.keys() & promised.keys() if rows[name] != promised[name])
    if moved:
        name = moved[0]
        yield Finding(paths.table, f"{name} at (shard, row, frames) {promised[name]}", f"{rows[name]}")


def repair_split(feature_set: FeatureSet, path: Path, findings: list[Finding]) -> list[int]:
    """Set the damaged shards of a split aside under `damaged/` and take them out of the table; returns their numbers.

    Their places stay in the plan: the next extract-features run encodes them again, into the same rows.
    """
    shards = sorted({finding.shard for finding in findings if finding.shard is not None})
    with SplitWriter(path, read_attributes(SplitPaths(path).group)) as writer:
        for shard in shards:
            aside = path / "damaged" / str(shard)
            make_folder(aside)
            record = writer.paths.commit(shard)
            record.replace(aside / "commit.json")
            del writer.commits[shard]
            for array in writer.paths.group.glob("*/c"):
                if (array / str(shard)).exists():
                    (array / str(shard)).rename(aside / array.parent.name)
        writer.publish({})
    return shards
