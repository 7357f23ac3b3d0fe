"""Is a store whole? `verify` reads and reports, `repair` sets damaged shards aside so that extraction fills them again."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import count

import numpy as np
from encodeonce.store.codebooks import read_codebooks
from encodeonce.store.commits import Commit, read_commits
from encodeonce.store.derive.transforms import read_transform, transform_path
from encodeonce.store.errors import DamagedError, MissingError, StoreError
from encodeonce.store.files import move, read_json, sha256_of, size_of
from encodeonce.store.format import ABSENT, index_bytes, read_index
from encodeonce.store.layout import (
    FeatureSet,
    Output,
    SplitAttributes,
    SplitPaths,
    published_outputs,
    read_attributes,
    scales_file,
    shard_file,
)
from encodeonce.store.objects import ObjectPath, StorePath
from encodeonce.store.plan import Place, read_plans
from encodeonce.store.table import open_table, read_table
from encodeonce.store.writer import SplitWriter


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as recorded: where, what was expected, what is there. `shard` is the damaged one, if one is."""

    path: StorePath
    expected: str
    found: str
    shard: int | None = None


@dataclass(frozen=True, slots=True)
class Check:
    """What a verification looked at, and what it found wrong."""

    split: StorePath
    shards: int
    utterances: int
    bytes_read: int
    findings: list[Finding]


def verify_split(feature_set: FeatureSet, path: StorePath, quick: bool = False, read_data: float = 0.0) -> Check:
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
    except (DamagedError, MissingError) as error:
        return Check(path, 0, 0, 0, [Finding(path, "readable records", str(error))])
    if not outputs and paths.table.is_file():
        lost = Finding(paths.group / "zarr.json", "the names of the outputs", "none; the next run lists them again")
        return Check(path, len(commits), 0, 0, [lost])
    findings: list[Finding] = []
    if attributes.fingerprint != feature_set.fingerprint:
        findings.append(Finding(paths.group, f"fingerprint {feature_set.fingerprint}", attributes.fingerprint))
    findings += _check_table(paths, commits, set(outputs), places)
    shards = max((s for s, c in commits.items() if c.outputs.keys() >= outputs.keys()), default=-1) + 1
    shown = _shards_shown(paths)
    for output in outputs.values():
        findings += _check_shape(paths, output, attributes, range(min(shown, shards), shards + 1))
        findings += [*_check_codebooks(feature_set, output), *_check_transform(feature_set, output)]
    widths = {name: output.width for name, output in outputs.items()}

    def check(file: ShardFile) -> tuple[list[Finding], int]:
        wrong = list(_check_size(file))
        if not wrong and not quick and file.output in widths:
            absent = set(commits[file.shard].absent)
            present = [place for place in places.get(file.shard, []) if place.id not in absent]
            wrong = list(_check_index(file, attributes, widths[file.output], present))
        if wrong or not _is_chosen(file.shard, read_data):
            return wrong, 0
        return list(_check_data(file)), file.entry["size"]

    @cache
    def home(array: str) -> StorePath:
        return paths.array(array) if array.removesuffix("-affine") in outputs else paths.standing(array)

    files = [file for commit in commits.values() for name in commit.outputs for file in shard_files(home, commit, name)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(check, files))
    findings += [finding for wrong, _ in results for finding in wrong]
    utterances = sum(commit.utterances for commit in commits.values())
    return Check(path, len(commits), utterances, sum(read for _, read in results), findings)


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A file of a shard with its entry in the commit record."""

    path: StorePath
    entry: dict
    shard: int
    output: str
    affine: bool = False


def shard_files(home: Callable[[str], StorePath], commit: Commit, output: str) -> list[ShardFile]:
    """The files that an output has in a shard: its values, and for int8 its scales; `home` tells where an array lies."""
    entry = commit.outputs[output]
    files = [ShardFile(shard_file(home(output), commit.shard), entry, commit.shard, output)]
    if "affine" in entry:
        scales = scales_file(home(f"{output}-affine"), commit.shard)
        files.append(ShardFile(scales, entry["affine"], commit.shard, output, affine=True))
    return files


def check_shard(paths: SplitPaths, shard: int, output: str) -> list[Finding] | None:
    """What is wrong with one output of a committed shard, every byte read; None where no record counts it."""
    commit = read_commits(paths).get(shard)
    if commit is None or output not in commit.outputs:
        return None
    return [f for file in shard_files(paths.array, commit, output) for f in [*_check_size(file), *_check_data(file)]]


def _is_chosen(shard: int, share: float) -> bool:
    """Whether a share of the shards, spread evenly over their numbers, takes this one in."""
    return int((shard + 1) * share) > int(shard * share)


def _places(paths: SplitPaths) -> dict[int, list[Place]]:
    shards: dict[int, list[Place]] = {}
    for plan in read_plans(paths.plans):
        for place in plan.places:
            shards.setdefault(place.shard, []).append(place)
    return shards


def _shards_shown(paths: SplitPaths) -> int:
    """One more than the highest shard of the table; 0 where there is none."""
    try:
        return max(open_table(paths.table).read(["shard"])["shard"].to_pylist(), default=-1) + 1
    except StoreError:
        return 0  # the table's own finding says so


def _check_shape(paths: SplitPaths, output: Output, attributes: SplitAttributes, shards: range) -> Iterator[Finding]:
    """Arrays reach all shards that the table shows; those above are shown when the run goes on, or the next one does."""
    size, width = attributes.shard_frames, output.width
    arrays = [(output.name, [[count * size, width] for count in shards])]
    if output.affine_name:
        arrays.append((output.affine_name, [[count * attributes.slots(width), 2, width] for count in shards]))
    for name, allowed in arrays:
        path, expected = paths.array(name) / "zarr.json", f"shape {allowed[-1]}"
        try:
            found = read_json(path).get("shape")
        except StoreError as error:
            yield Finding(path, expected, str(error))
            continue
        if found not in allowed:
            yield Finding(path, expected, f"shape {found}")


def _check_codebooks(feature_set: FeatureSet, output: Output) -> Iterator[Finding]:
    """Codes and units without the vectors that they stand for are numbers alone; who writes codes by other code may leave it so."""
    if not output.codebook_sizes:
        return
    path, recorded = feature_set.codebooks(output.name), (output.derivation or {}).get("codebooks_sha256")
    again = f"{'the same derive command' if recorded else 'the next extract-features run of the feature set'} writes it again"
    if not path.is_file():
        if recorded:
            yield Finding(path, f"codebooks with sha256 {recorded}", f"no such file; {again}")
        elif "written_by" not in feature_set.provenance:
            yield Finding(path, f"codebooks of {list(output.codebook_sizes)} vectors", f"no such file; {again}")
        return
    try:
        found = read_codebooks(path)
    except StoreError as error:
        yield Finding(path, "codebooks that can be read", f"{error}; take the file away: {again}")
        return
    if found.sizes != output.codebook_sizes:
        yield Finding(path, f"codebooks of {list(output.codebook_sizes)} vectors", f"{list(found.sizes)}")
    elif recorded and found.sha256 != recorded:
        yield Finding(path, f"codebooks with sha256 {recorded}", f"sha256 {found.sha256}")


def _check_transform(feature_set: FeatureSet, output: Output) -> Iterator[Finding]:
    """Without what it was fitted with, no later utterance gets an output."""
    if (output.derivation or {}).get("transform_sha256"):
        try:
            read_transform(feature_set, output)
        except StoreError as error:
            yield Finding(transform_path(feature_set, output.name), f"the transform of {output.name}", str(error))


def _check_size(file: ShardFile) -> Iterator[Finding]:
    expected = f"{file.entry['size']} bytes"
    try:
        size = size_of(file.path)
    except OSError as error:
        yield Finding(file.path, expected, (error.strerror or str(error)).lower(), file.shard)
        return
    if size != file.entry["size"]:
        yield Finding(file.path, expected, f"{size} bytes", file.shard)


def _check_data(file: ShardFile) -> Iterator[Finding]:
    try:
        digest = sha256_of(file.path)
    except OSError:
        return  # the size's finding says so
    if digest != file.entry["sha256"]:
        yield Finding(file.path, f"sha256 {file.entry['sha256']}", f"sha256 {digest}", file.shard)


def _check_index(file: ShardFile, attributes: SplitAttributes, width: int, places: list[Place]) -> Iterator[Finding]:
    path, size, shard = file.path, file.entry["size"], file.shard
    try:
        if isinstance(path, ObjectPath):
            data = path.read_end(min(size, index_bytes(attributes.slots(width))))
        else:
            data = np.memmap(path, np.uint8, "r")
        index = read_index(data, attributes.slots(width), str(path))
    except DamagedError as error:
        yield Finding(path, "an index whose checksum holds", str(error), shard)
        return
    chunk = attributes.chunk_frames(width)
    used = index[:, 0] != ABSENT
    expected = np.zeros(len(index), bool)
    for place in places:
        first = place.row % attributes.shard_frames // chunk
        expected[first : first + (1 if file.affine else -(-place.frames // chunk))] = True
    if not np.array_equal(used, expected):
        yield Finding(path, f"{expected.sum()} chunks of {len(places)} utterances", f"{used.sum()} chunks", shard)
    elif used.any() and int(index[used].sum(axis=1).max()) > size:
        yield Finding(path, "chunks inside the file", f"a chunk that ends past its {size} bytes", shard)


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
    # Whole shards that the table does not show yet are no damage: a run shows them when it goes on.
    shown = {shard for shard, _, _ in rows.values()}
    if missing := sorted(name for name in promised.keys() - rows.keys() if promised[name][0] in shown):
        yield Finding(paths.table, f"{len(promised)} utterances", f"{len(missing)} missing, e.g. {missing[0]}")
    if strange := sorted(rows.keys() - promised.keys()):
        yield Finding(
            paths.table, f"{len(promised)} utterances", f"{len(strange)} in no committed shard, e.g. {strange[0]}"
        )
    both = rows.keys() & promised.keys()
    moved = sorted(name for name in both if rows[name] != promised[name] and promised[name][0] in shown)
    if moved:
        name = moved[0]
        yield Finding(paths.table, f"{name} at (shard, row, frames) {promised[name]}", f"{rows[name]}")


def repair_split(feature_set: FeatureSet, path: StorePath, findings: list[Finding]) -> list[int]:
    """Set the damaged shards of a split aside under `damaged/` and take them out of the table; returns their numbers.

    Their places stay in the plan: the next extract-features run encodes them again, into the same rows.
    """
    shards = sorted({finding.shard for finding in findings if finding.shard is not None})
    with SplitWriter(path, read_attributes(SplitPaths(path).group), mending=True) as writer:
        for shard in shards:
            aside = _unused(path / "damaged" / str(shard))
            move(writer.paths.commit(shard), aside / "commit.json")  # first: without it the shard does not count
            del writer.commits[shard]
            for folder in list(writer.paths.shard_folders(shard)):
                move(folder, aside / folder.parent.parent.name)
        writer.publish({})
    return shards


def _unused(folder: StorePath) -> StorePath:
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in count(2))
    return folder if not folder.exists() else next(path for path in numbered if not path.exists())
