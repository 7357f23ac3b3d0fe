"""The writing side of a split: kept plans, the shard as a transaction, the tables that readers see.

A shard counts when its commit record stands; everything else of a split can be made again from plans, shards and records.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Self

from encodeonce.store.commits import Commit
from encodeonce.store.errors import StoreError
from encodeonce.store.files import open_file, remove_tree, write_json
from encodeonce.store.format import ShardItem, read_items
from encodeonce.store.hold import Member
from encodeonce.store.layout import Output, SplitAttributes, shard_file
from encodeonce.store.noise import Ratio, of_fewer, summary
from encodeonce.store.objects import StorePath
from encodeonce.store.publish import Publishing
from encodeonce.store.staging import ShardFiles, Staged, move_in
from encodeonce.store.table import table_from_records
from encodeonce.store.tidy import check_records, sweep_arrays, sweep_shards


class SplitWriter(Publishing):
    """One process's hold on a split for writing. A context manager: it locks the split and cleans up after a kill.

    Args:
        path: the folder of the split.
        attributes: of the split, for one that does not stand yet.
        mending: damage is what this is about: neither check nor sweep.
        member: write together with other processes, each the shards that it owns; by default as the only one.

    Raises:
        StoreError: on entering, where another process writes that this one must not meet.
        DamagedError: on entering, where the split is not what its records say.
    """

    def __init__(
        self, path: StorePath, attributes: SplitAttributes, mending: bool = False, member: Member | None = None
    ) -> None:
        super().__init__(path, attributes, member)
        self._mending, self._held = mending, ExitStack()

    @classmethod
    def look(cls, path: StorePath, attributes: SplitAttributes) -> Self:
        """The state of a split, there or not, without locking or writing anything."""
        writer = cls(path, attributes)
        writer.load()
        return writer

    def __enter__(self) -> Self:
        with self.hold.alone(), ExitStack() as stack:
            stack.enter_context(self.hold.taken())
            self._prepare()
            self._held = stack.pop_all()
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
            self._held.__exit__(kind, error, trace)

    def _prepare(self) -> None:
        """Read what stands, and clean up after a kill: whoever is the only one there for all, a member for itself."""
        everyone = self.last
        if everyone:
            self.hold.clear()
        for folder in [*self.paths.root.glob(".tmp*")] if everyone else [self.paths.scratch]:
            remove_tree(folder)
        self.load()
        if self._mending:
            return
        owns = (lambda shard: True) if everyone else self.owns
        check_records(self, owns)
        if everyone:
            sweep_arrays(self)
        sweep_shards(self, owns)
        self._close_unfinished()

    def owns(self, shard: int) -> bool:
        """Whether a shard is this writer's to make: for a member one in world_size, else every one."""
        return self.hold.member is None or self.hold.member.owns(shard)

    def _must_own(self, shard: int) -> None:
        if not self.owns(shard):
            self._must_be_alone(f"shard {shard}")

    def _files(self) -> ShardFiles:
        return ShardFiles(self.home, self.attributes, self.paths.scratch, self.hold.check)

    def commit(
        self,
        shard: int,
        plan: int,
        absent: Sequence[str],
        items: Mapping[str, Iterable[ShardItem]],
        specs: Mapping[str, Output],
        noise: Mapping[str, Sequence[Ratio]],
        made: Mapping[str, Any],
    ) -> None:
        """Write the shard files of some outputs, then the record that makes them count.

        `noise` holds the signal-to-noise ratio of each utterance in dB, by output; it is looked at when all is written.
        """
        self.count(self.write_files(shard, items, specs), plan, absent, noise, made)

    def write_files(self, shard: int, items: Mapping[str, Iterable[ShardItem]], specs: Mapping[str, Output]) -> Staged:
        """Write the shard files of some outputs, for `count`. Several threads may do so at the same time."""
        self._must_own(shard)
        return self._files().write(shard, items, specs)

    def adopt(
        self,
        folder: StorePath,
        staged: Staged,
        plan: int,
        absent: Sequence[str],
        noise: Mapping[str, Sequence[Ratio]],
        made: Mapping[str, Any],
    ) -> None:
        """Commit what another process wrote by `stage` below a folder, which is removed.

        Raises:
            StoreError: the staged files are gone or cut; nothing is committed then.
        """
        self._must_own(staged.shard)
        self.hold.check()
        move_in(folder, staged, self.home)
        self.count(staged, plan, absent, noise, made)
        remove_tree(folder)

    def count(
        self,
        written: Staged,
        plan: int,
        absent: Sequence[str],
        noise: Mapping[str, Sequence[Ratio]],
        made: Mapping[str, Any],
    ) -> None:
        """Write the record that makes shard files count; `noise` and `made` as for `commit`."""
        shard = written.shard
        entries = dict(self.commits[shard].outputs) if shard in self.commits else {}
        entries |= {name: entry | {"snr_db": summary(noise.get(name, ()))} for name, entry in written.entries.items()}
        record = Commit(
            shard=shard,
            plan=plan,
            utterances=written.utterances,
            frames=written.frames,
            absent=sorted(absent),
            outputs=dict(sorted(entries.items())),
            made={**made, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())},
        )
        if shard not in self.commits:  # else the table shows it, or its files tell
            self._fresh[shard] = table_from_records(written.records)
        self.write_commit(record)

    def write_commit(self, record: Commit) -> None:
        """Write a shard's record."""
        self._must_own(record.shard)
        self.hold.check()
        write_json(self.paths.commit(record.shard), asdict(record), self.paths.scratch)
        self.commits[record.shard] = record

    def remove(self, shard: int, names: set[str]) -> None:
        """Write a committed shard anew without some utterances; the values of the others stay as they are.

        Of a shard that would be empty only the record stays, with no outputs.
        """
        self._must_be_alone("remove")
        record = self.commits[shard]
        absent, left = sorted({*record.absent, *names}), record.utterances - len(names)
        if left <= 0:
            self.write_commit(replace(record, utterances=0, frames=0, absent=absent, outputs={}))
            for folder in self.paths.shard_folders(shard):
                remove_tree(folder)
            return
        entries, frames = {}, 0
        for name, entry in record.outputs.items():
            path = shard_file(self.home(name), shard)
            with open_file(path) as file:
                stored = read_items(file, self.attributes.shard_frames, str(path))
            items = [item for item in stored if item.id not in names]
            output = Output(name, items[0].values.shape[1], entry["dtype"], "")
            noise = of_fewer(entry.get("snr_db"), left)
            entries[name] = {**entry, **self._files().write_output(shard, output, items), "snr_db": noise}
            frames = sum(item.values.shape[0] for item in items)
        self.write_commit(replace(record, utterances=left, frames=frames, absent=absent, outputs=entries))

    def drop(self, names: set[str]) -> None:
        """Take outputs away: readers stop seeing them, then no record counts them, then their files go.

        Where it is killed in between, what stands is whole, and the same call finishes it.
        """
        if self.hold.member:
            raise RuntimeError("drop by a member of a joint writing: only by an exclusive writer")
        self.hold.check()
        self.outputs = {name: output for name, output in self.outputs.items() if name not in names}
        self._list_outputs()
        for record in list(self.commits.values()):
            kept = {name: entry for name, entry in record.outputs.items() if name not in names}
            if kept != record.outputs:
                self.write_commit(replace(record, outputs=kept))
        sweep_arrays(self)
        sweep_shards(self, self.owns)
        self._close_unfinished()
