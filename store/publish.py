"""What readers are shown of a split: its attributes, the arrays, and the table, made of what is committed."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from encodeonce.store.commits import Commit
from encodeonce.store.files import move, open_file, read_json, version_of, write_json
from encodeonce.store.format import affine_metadata, array_metadata, group_metadata, read_records
from encodeonce.store.hold import Hold, Member
from encodeonce.store.layout import ATTRIBUTES_KEY, Output, SplitAttributes, SplitPaths
from encodeonce.store.objects import StorePath
from encodeonce.store.plan import Plan, deal, write_plan
from encodeonce.store.state import SplitState
from encodeonce.store.table import concat, in_row_groups, shards_of, table_from_records, write_table


class Publishing(SplitState):
    """Writes what all of a split shares. Of several members one at a time does, inside `alone`."""

    def __init__(self, path: StorePath, attributes: SplitAttributes, member: Member | None = None) -> None:
        scratch = f".tmp-{member.rank}-of-{member.world_size}" if member else ".tmp"
        super().__init__(SplitPaths(path, scratch), attributes)
        self.hold = Hold(path, member)
        self._fresh: dict[int, pa.Table] = {}

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the other members out as long as the block lasts, and know what they wrote. An exclusive writer is alone always."""
        with self.hold.alone() as entered:
            if entered:
                self.load()
            yield

    @property
    def last(self) -> bool:
        """Whether no other member lives; certain inside `alone`."""
        return not self.hold.others()

    def _must_be_alone(self, what: str) -> None:
        if not self.hold.is_alone:
            raise RuntimeError(f"{what} by a member of a joint writing: only inside alone(), on what was read in there")

    def begin(self, shard_frames: int) -> None:
        """Fix the shard size of a split that has no plan yet; one that has keeps it."""
        self._must_be_alone("begin")
        if not self.plans:
            self._write_attributes(replace(self.attributes, shard_frames=shard_frames))

    def append_plan(self, utterances: Iterable[tuple[str, int, int]], copy_from: Mapping[str, int]) -> Plan:
        """Give new utterances (id, samples, frames) their places in new shards, and keep the plan."""
        self._must_be_alone("append_plan")
        number = self.plans[-1].number + 1 if self.plans else 0
        first_shard = max((place.shard for plan in self.plans for place in plan.places), default=-1) + 1
        plan = Plan(
            number, deal(utterances, self.attributes.shard_frames, first_shard, number), dict(sorted(copy_from.items()))
        )
        write_plan(self.paths.plans, plan, self.paths.scratch)
        self.plans.append(plan)
        return plan

    def open_outputs(self, outputs: Mapping[str, Output]) -> None:
        """Begin the outputs of a split that has none: empty arrays, which grow with the shards. What joins a split
        later lies outside the group until every shard has it."""
        with self.alone():
            if self.outputs or self.commits:
                return
            self.outputs = dict(outputs)
            for output in outputs.values():
                self._write_array(output, 0)
            self._list_outputs()

    def publish(self, requested: Mapping[str, Output]) -> None:
        """Show readers what is committed: the table, and the arrays whose every shard stands.

        What other living members committed and did not show yet is left to them: they need not read it back.
        """
        with self.alone():
            if self.commits or self.table.num_rows:
                self._publish(requested)

    def _publish(self, requested: Mapping[str, Output]) -> None:
        self.hold.check()
        outputs = dict(self.outputs)
        for name, output in requested.items():
            if name not in outputs and self._is_whole(name):
                outputs[name] = output
        if not outputs:
            return
        shards = {record.shard for record in self._complete(outputs)}
        for output in outputs.values():
            self._write_array(output, max(shards, default=-1) + 1)
        self.outputs = outputs
        self._list_outputs()
        live = self.live_shards(shards - self._left_to_others(shards))
        if not self._shows(live) or not self.paths.table.exists():
            self.set_table(self._table_of(live, next(iter(outputs))))
            self._fresh.clear()

    def _is_whole(self, name: str) -> bool:
        """Whether an output that readers do not see has every shard.

        Where another member lives, every planned shard: it may be writing one right now, into the array that would be moved.
        """
        complete = self._complete(self.outputs)
        if not complete or not all(name in commit.outputs for commit in complete):
            return False
        return self.commits.keys() >= self.places.keys() or self.last

    def _complete(self, outputs: Mapping[str, Output]) -> list[Commit]:
        records = sorted(self.commits.values(), key=lambda record: record.shard)
        return [record for record in records if record.utterances and outputs.keys() <= record.outputs.keys()]

    def _left_to_others(self, shards: Collection[int]) -> set[int]:
        """The shards that other living members committed and did not show yet."""
        if self.hold.member is None:
            return set()
        others = self.hold.others()
        unshown = set(shards) - self._shown()
        return {shard for shard in unshown if any(member.owns(shard) for member in others)}

    def set_table(self, table: pa.Table) -> None:
        """Replace utterances.parquet."""
        self._must_be_alone("set_table")
        table = in_row_groups(table)
        write_table(self.paths.table, table, self.paths.scratch)
        self.table, self._table_version = table, version_of(self.paths.table)

    def _table_of(self, live: Mapping[str, int], output: str) -> pa.Table:
        """The rows of utterances: those of the standing table, of what this run wrote, else the records in the shards."""
        unread = sorted(set(live.values()) - self._shown())
        tables = [self._fresh[shard] if shard in self._fresh else self._records(output, shard) for shard in unread]
        table = concat([self.table, *tables])
        kept = np.fromiter((live.get(name) == shard for name, shard in shards_of(table)), bool, table.num_rows)
        if not kept.all():
            table = table.filter(pa.array(kept))
        in_order = bool((np.diff(table["row"].to_numpy()) > 0).all())
        return table if in_order else table.sort_by("row")

    def _shows(self, live: Mapping[str, int]) -> bool:
        """Whether the standing table is that of these utterances."""
        return len(live) == self.table.num_rows and all(
            live.get(name) == shard for name, shard in shards_of(self.table)
        )

    def _shown(self) -> set[int]:
        """The shards that have rows in the standing table."""
        return set(np.unique(self.table["shard"].to_numpy()).tolist())

    def _records(self, output: str, shard: int) -> pa.Table:
        path = self.paths.shard(output, shard)
        with open_file(path) as file:
            return table_from_records(list(read_records(file, str(path))))

    def _write_attributes(self, attributes: SplitAttributes) -> None:
        write_json(self.paths.group / "zarr.json", group_metadata(attributes.to_json()), self.paths.scratch)
        self.attributes = attributes

    def _list_outputs(self) -> None:
        """Let the group name the arrays that readers see; their zarr.json stand already."""
        attributes = replace(self.attributes, outputs=tuple(sorted(self.outputs)))
        if attributes != self.attributes:
            self._write_attributes(attributes)

    def _write_array(self, output: Output, shards: int) -> None:
        size = self.attributes.shard_frames
        attributes = {ATTRIBUTES_KEY: output.to_json()}
        target = self.home(output.name) / "zarr.json"
        chunk = self.attributes.chunk_frames(output.width)
        metadata = array_metadata(output.name, shards, size, chunk, output.width, output.dtype, attributes)
        pairs = [(target, metadata)]
        if output.affine_name:
            restored = {"restore": f"{output.name}[row:row + frames] * affine[row // C, 0] + affine[row // C, 1]"}
            target = self.home(output.affine_name) / "zarr.json"
            pairs.append((target, affine_metadata(output.name, shards, size // chunk, output.width, restored)))
        for path, value in reversed(pairs):
            if not path.exists() or read_json(path) != value:
                write_json(path, value, self.paths.scratch)
            array = path.parent
            if array.parent == self.paths.unfinished:
                move(array, self.paths.group / array.name)
        self._close_unfinished()

    def _close_unfinished(self) -> None:
        """Remove the folder of unfinished arrays where none is left, and nobody is about to begin one."""
        folder = self.paths.unfinished
        if isinstance(folder, Path) and folder.is_dir() and self.last:
            with suppress(OSError):
                folder.rmdir()
