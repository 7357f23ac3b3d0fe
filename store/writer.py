"""The writing side of a split: kept plans, the shard as a transaction, the tables that readers see.

A shard counts when its commit record stands; everything else of a split can be made again from plans, shards and records.
"""

import hashlib
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from encodeonce.store.commits import Commit, read_commits
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.files import (
    atomic_write,
    move,
    open_file,
    read_json,
    remove_tree,
    sizes_below,
    write_json,
    writer_lock,
)
from encodeonce.store.format import (
    ShardItem,
    affine_metadata,
    array_metadata,
    group_metadata,
    pack_affine_shard,
    pack_shard,
    read_items,
    read_records,
)
from encodeonce.store.layout import (
    ATTRIBUTES_KEY,
    Output,
    SplitAttributes,
    SplitPaths,
    published_outputs,
    read_attributes,
    scales_file,
    shard_file,
)
from encodeonce.store.objects import StorePath
from encodeonce.store.plan import Place, Plan, deal, read_plans, write_plan
from encodeonce.store.table import concat, read_table, table_from_records, write_table


class SplitWriter:
    """One process's hold on a split for writing. A context manager: it locks the split and cleans up after a kill."""

    def __init__(self, path: StorePath, attributes: SplitAttributes, mending: bool = False) -> None:
        self.paths = SplitPaths(path)
        self.attributes = attributes
        self._lock, self._mending = writer_lock(path), mending
        self._check_hold = lambda: None
        self._fresh: dict[int, pa.Table] = {}

    def __enter__(self) -> Self:
        self._check_hold = self._lock.__enter__()
        try:
            remove_tree(self.paths.scratch)
            self._load()
            if not self._mending:
                self._check()
                self._sweep()
        except BaseException as error:
            self._lock.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            remove_tree(self.paths.scratch)
        except StoreError:
            if error is None:  # else what went wrong first is what counts
                raise
        finally:
            self._lock.__exit__(kind, error, trace)

    def _check(self) -> None:
        """Refuse to build on a split that is not what its records say."""
        places = self.places
        if places and not (self.paths.group / "zarr.json").exists():
            raise DamagedError(
                f"{self.paths.group / 'zarr.json'} is missing; it says how the split is laid out: restore it"
            )
        names = {name for commit in self.commits.values() for name in commit.outputs}
        sizes = {name: sizes_below(self._home(name) / "c") for name in names}
        for shard, commit in self.commits.items():
            if shard not in places:
                plan = self.paths.plans / f"{commit.plan}.parquet"
                raise DamagedError(f"{plan} is missing; it places the utterances of shard {shard}: restore it")
            for name, entry in commit.outputs.items():
                size = sizes[name].get(f"{shard}/0")
                if size != entry["size"]:
                    found = "nothing" if size is None else f"{size} bytes"
                    raise DamagedError(
                        f"{shard_file(self._home(name), shard)} should have {entry['size']} bytes, and there is {found}; "
                        f"feature-store repair {self.paths.root} sets such shards aside, and the next run fills them"
                    )

    def _sweep(self) -> None:
        """Remove what no record counts: a killed run's, which plain readers would take for the split's."""
        filled = [commit.outputs.keys() for commit in self.commits.values() if commit.utterances]
        for array in self.paths.unfinished.glob("*/"):
            if (self.paths.array(array.name) / "zarr.json").is_file():
                remove_tree(array)  # copied whole by a run that was killed before it removed the original
        for array in [*self.paths.group.glob("*/"), *self.paths.unfinished.glob("*/")]:
            name, begun = array.name.removesuffix("-affine"), (array / "zarr.json").is_file()
            seen, held = begun and name in self.outputs, [name in outputs for outputs in filled]
            if not any(held) and not seen:
                (array / "zarr.json").unlink(missing_ok=True)  # first: plain zarr reads missing shards as zeros
                remove_tree(array)
            elif begun and array.parent == self.paths.group and not all(held) and not seen:
                move(array, self.paths.unfinished / array.name)  # dropping it was begun, and it lacks shards by now
        for folder in self.paths.shard_folders():
            commit = self.commits.get(int(folder.name))
            if commit is None or folder.parent.parent.name.removesuffix("-affine") not in commit.outputs:
                remove_tree(folder)
        self._close_unfinished()

    def _close_unfinished(self) -> None:
        """Remove the folder of unfinished arrays where none is left."""
        if isinstance(self.paths.unfinished, Path):
            with suppress(OSError):
                self.paths.unfinished.rmdir()

    @classmethod
    def look(cls, path: StorePath, attributes: SplitAttributes) -> Self:
        """The state of a split, there or not, without locking or writing anything."""
        writer = cls(path, attributes)
        writer._load()
        return writer

    def _load(self) -> None:
        if (self.paths.group / "zarr.json").exists():
            standing = read_attributes(self.paths.group)
            if standing.fingerprint != self.attributes.fingerprint:
                raise StoreError(
                    f"{self.paths.root} holds feature set {standing.fingerprint}, not {self.attributes.fingerprint}"
                )
            self.attributes = standing
        self.plans = read_plans(self.paths.plans)
        self.commits = read_commits(self.paths)
        self.outputs = published_outputs(self.paths, self.attributes)
        self.table = read_table(self.paths.table) if self.paths.table.exists() else concat([])

    @property
    def spool_folder(self) -> Path:
        """A folder on this machine for what is too large for memory."""
        scratch = self.paths.scratch
        return scratch if isinstance(scratch, Path) else Path(tempfile.gettempdir())

    def _home(self, array: str) -> StorePath:
        """Where the shards of an array lie, which readers may not see yet."""
        published = array.removesuffix("-affine") in self.outputs
        return self.paths.array(array) if published else self.paths.standing(array)

    @property
    def places(self) -> dict[int, list[Place]]:
        """Every planned utterance, by shard, in the order of rows."""
        shards: dict[int, list[Place]] = {}
        for plan in self.plans:
            for place in plan.places:
                shards.setdefault(place.shard, []).append(place)
        return shards

    def present(self, shard: int, places: Sequence[Place]) -> list[Place]:
        """The utterances of a committed shard."""
        absent = set(self.commits[shard].absent)
        return [place for place in places if place.id not in absent]

    def begin(self, shard_frames: int) -> None:
        """Fix the shard size of a split that has no plan yet; one that has keeps it."""
        if not self.plans:
            self._write_attributes(replace(self.attributes, shard_frames=shard_frames))

    def _write_attributes(self, attributes: SplitAttributes) -> None:
        write_json(self.paths.group / "zarr.json", group_metadata(attributes.to_json()), self.paths.scratch)
        self.attributes = attributes

    def _list_outputs(self) -> None:
        """Let the group name the arrays that readers see; their zarr.json stand already."""
        attributes = replace(self.attributes, outputs=tuple(sorted(self.outputs)))
        if attributes != self.attributes:
            self._write_attributes(attributes)

    def open_outputs(self, outputs: Mapping[str, Output]) -> None:
        """Begin the outputs of a split that has none: empty arrays, which grow with the shards. What joins a split
        later lies outside the group until every shard has it."""
        if self.outputs or self.commits:
            return
        self.outputs = dict(outputs)
        for output in outputs.values():
            self._write_array(output, 0)
        self._list_outputs()

    def append_plan(self, utterances: Iterable[tuple[str, int, int]], copy_from: Mapping[str, int]) -> Plan:
        """Give new utterances (id, samples, frames) their places in new shards, and keep the plan."""
        number = self.plans[-1].number + 1 if self.plans else 0
        first_shard = max((place.shard for plan in self.plans for place in plan.places), default=-1) + 1
        plan = Plan(
            number, deal(utterances, self.attributes.shard_frames, first_shard, number), dict(sorted(copy_from.items()))
        )
        write_plan(self.paths.plans, plan, self.paths.scratch)
        self.plans.append(plan)
        return plan

    def write_output(self, shard: int, output: Output, items: Sequence[ShardItem]) -> dict[str, Any]:
        """Write one output's shard file (and its scales); return its entry for the commit record, without the SNR."""
        path = shard_file(self._home(output.name), shard)
        entry: dict[str, Any] = {"dtype": output.dtype}
        size, chunk = self.attributes.shard_frames, self.attributes.chunk_frames(output.width)
        entry |= self._write_hashed(path, pack_shard(items, size, chunk))
        if output.dtype == "int8":
            path = scales_file(self._home(f"{output.name}-affine"), shard)
            entry["affine"] = self._write_hashed(path, pack_affine_shard(items, size, chunk))
        return entry

    def _write_hashed(self, path: StorePath, pieces: Iterator[bytes | memoryview]) -> dict[str, Any]:
        self._check_hold()
        digest, size = hashlib.sha256(), 0
        with atomic_write(path, self.paths.scratch) as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
                size += len(piece)
        return {"size": size, "sha256": digest.hexdigest()}

    def commit(
        self,
        shard: int,
        plan: int,
        absent: Sequence[str],
        items: Mapping[str, Sequence[ShardItem]],
        specs: Mapping[str, Output],
        noise: Mapping[str, Sequence[float]],
        made: Mapping[str, Any],
    ) -> None:
        """Write the shard files of some outputs, then the record that makes them count.

        `noise` holds the signal-to-noise ratio of each utterance in dB, by output.
        """
        entries = dict(self.commits[shard].outputs) if shard in self.commits else {}
        for name, utterances in items.items():
            entry = self.write_output(shard, specs[name], utterances)
            entries[name] = entry | {"snr_db": _summary(noise.get(name, ()))}
        some = next(iter(items.values()))
        record = Commit(
            shard=shard,
            plan=plan,
            utterances=len(some),
            frames=sum(item.values.shape[0] for item in some),
            absent=sorted(absent),
            outputs=dict(sorted(entries.items())),
            made={**made, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        )
        if shard not in self.commits:  # else the table shows it, or its files tell
            self._fresh[shard] = table_from_records([item.record for item in some])
        self.write_commit(record)

    def write_commit(self, record: Commit) -> None:
        """Write a shard's record."""
        self._check_hold()
        write_json(self.paths.commit(record.shard), asdict(record), self.paths.scratch)
        self.commits[record.shard] = record

    def publish(self, requested: Mapping[str, Output]) -> None:
        """Show readers what is committed: the table, and the arrays whose every shard stands."""
        if not self.commits and not self.table.num_rows:
            return
        self._check_hold()
        outputs = dict(self.outputs)
        for name, output in requested.items():
            if name not in outputs and all(name in commit.outputs for commit in self._complete(outputs)):
                outputs[name] = output
        if not outputs:
            return
        complete = self._complete(outputs)
        shards = {record.shard for record in complete}
        for output in outputs.values():
            self._write_array(output, max(shards, default=-1) + 1)
        self.outputs = outputs
        self._list_outputs()
        live = {name: shard for name, shard in self.live_shards().items() if shard in shards}
        if live != self._tabled() or not self.paths.table.exists():
            self.set_table(self._table_of(live, next(iter(outputs))))
            self._fresh.clear()

    def _tabled(self) -> dict[str, int]:
        """The shard of each utterance in the table that readers see."""
        return dict(zip(self.table["id"].to_pylist(), self.table["shard"].to_pylist(), strict=True))

    def set_table(self, table: pa.Table) -> None:
        """Replace utterances.parquet."""
        write_table(self.paths.table, table, self.paths.scratch)
        self.table = table

    def _complete(self, outputs: Mapping[str, Output]) -> list[Commit]:
        records = sorted(self.commits.values(), key=lambda record: record.shard)
        return [record for record in records if record.utterances and outputs.keys() <= record.outputs.keys()]

    def _table_of(self, live: Mapping[str, int], output: str) -> pa.Table:
        """The rows of utterances: those of the standing table, of what this run wrote, else the records in the shards."""
        known = set(self.table["shard"].to_pylist())
        unread = sorted(set(live.values()) - known)
        tables = [self._fresh[shard] if shard in self._fresh else self._records(output, shard) for shard in unread]
        table = concat([self.table, *tables])
        pairs = zip(table["id"].to_pylist(), table["shard"].to_pylist(), strict=True)
        kept = np.array([live.get(name) == shard for name, shard in pairs], bool)
        return table.filter(pa.array(kept)).sort_by("row")

    def _records(self, output: str, shard: int) -> pa.Table:
        path = self.paths.shard(output, shard)
        with open_file(path) as file:
            return table_from_records(list(read_records(file, str(path))))

    def live_shards(self) -> dict[str, int]:
        """The shard each committed utterance counts in: the newest that holds it."""
        places = self.places
        return {
            place.id: shard for shard in sorted(self.commits) for place in self.present(shard, places.get(shard, []))
        }

    def superseded(self) -> dict[int, set[str]]:
        """Utterances that stand in a newer shard too, by the older shard that still holds them."""
        live, places = self.live_shards(), self.places
        older = {
            shard: {place.id for place in self.present(shard, places.get(shard, [])) if live[place.id] != shard}
            for shard in self.commits
        }
        return {shard: names for shard, names in older.items() if names}

    def remove(self, shard: int, names: set[str]) -> None:
        """Write a committed shard anew without some utterances; the values of the others stay as they are.

        Of a shard that would be empty only the record stays, with no outputs.
        """
        record = self.commits[shard]
        absent, left = sorted({*record.absent, *names}), record.utterances - len(names)
        if left <= 0:
            self.write_commit(replace(record, utterances=0, frames=0, absent=absent, outputs={}))
            for folder in self.paths.shard_folders(shard):
                remove_tree(folder)
            return
        entries, frames = {}, 0
        for name, entry in record.outputs.items():
            path = shard_file(self._home(name), shard)
            with open_file(path) as file:
                stored = read_items(file, self.attributes.shard_frames, str(path))
            items = [item for item in stored if item.id not in names]
            output = Output(name, items[0].values.shape[1], entry["dtype"], "")
            # The SNR is that of the shard as it was written first; it is not known by utterance.
            entries[name] = {**entry, **self.write_output(shard, output, items)}
            frames = sum(item.values.shape[0] for item in items)
        self.write_commit(replace(record, utterances=left, frames=frames, absent=absent, outputs=entries))

    def drop(self, names: set[str]) -> None:
        """Take outputs away: readers stop seeing them, then no record counts them, then their files go.

        Where it is killed in between, what stands is whole, and the same call finishes it.
        """
        self._check_hold()
        self.outputs = {name: output for name, output in self.outputs.items() if name not in names}
        self._list_outputs()
        for record in list(self.commits.values()):
            kept = {name: entry for name, entry in record.outputs.items() if name not in names}
            if kept != record.outputs:
                self.write_commit(replace(record, outputs=kept))
        self._sweep()

    def _write_array(self, output: Output, shards: int) -> None:
        size = self.attributes.shard_frames
        attributes = {ATTRIBUTES_KEY: output.to_json()}
        target = self._home(output.name) / "zarr.json"
        chunk = self.attributes.chunk_frames(output.width)
        metadata = array_metadata(output.name, shards, size, chunk, output.width, output.dtype, attributes)
        pairs = [(target, metadata)]
        if output.affine_name:
            restored = {"restore": f"{output.name}[row:row + frames] * affine[row // C, 0] + affine[row // C, 1]"}
            target = self._home(output.affine_name) / "zarr.json"
            pairs.append((target, affine_metadata(output.name, shards, size // chunk, output.width, restored)))
        for path, value in reversed(pairs):
            if not path.exists() or read_json(path) != value:
                write_json(path, value, self.paths.scratch)
            array = path.parent
            if array.parent == self.paths.unfinished:
                move(array, self.paths.group / array.name)
        self._close_unfinished()


def _summary(noise: Sequence[float]) -> dict[str, float] | None:
    finite = [value for value in noise if math.isfinite(value)]
    if not finite:
        return None
    return {"least": round(min(finite), 3), "mean": round(sum(finite) / len(finite), 3)}
