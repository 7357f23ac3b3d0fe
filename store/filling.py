"""One call of FeatureWriter: which shards lack what, asked for shard by shard, committed, and shown to readers."""

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
from encodeonce.store.derive.chain import Chain, Stored, chain_of
from encodeonce.store.describe import redescribe
from encodeonce.store.errors import StoreError
from encodeonce.store.failures import read_failures, write_failures
from encodeonce.store.format import ShardItem
from encodeonce.store.incoming import NewUtterance, new_record, said_of, same_audio
from encodeonce.store.layout import FeatureSet, Output
from encodeonce.store.noise import Ratio
from encodeonce.store.plan import Place
from encodeonce.store.quantize import NotStorableError, keep
from encodeonce.store.writer import Commit, SplitWriter

PUBLISH_SECONDS = 30.0
"""Readers see new shards at least this often during a long run."""

Features = Callable[[str], np.ndarray | Mapping[str, np.ndarray]]
"""id -> the features `[T, D]` of the only output, or of every output by name."""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What a call did; every utterance counts once, as written, reused or failed (with its reason, by id)."""

    split: str
    path: str
    utterances: int
    written: int
    reused: int
    failed: dict[str, str]
    frames: int
    """Of the whole split now."""
    bytes: int
    """Of the whole split now."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A shard to make, or one that stands (`commit`) and lacks outputs."""

    shard: int
    plan: int
    places: list[Place]
    outputs: list[Output]
    commit: Commit | None


class Filling:
    """One call of `FeatureWriter.write`, which holds the split. `shard_frames` gives the rows of a shard of a new split."""

    def __init__(
        self,
        writer: SplitWriter,
        feature_set: FeatureSet,
        outputs: Mapping[str, Output],
        shard_frames: Callable[[list[int]], int],
        listed: Mapping[str, NewUtterance],
        features: Features,
        replace: bool,
    ) -> None:
        self.writer, self.feature_set, self.given, self.shard_frames = writer, feature_set, outputs, shard_frames
        self.listed, self.features, self.replace = listed, features, replace
        self.outputs = {**writer.outputs, **outputs}
        self.failed: dict[str, str] = {}
        self.written: set[str] = set()
        self._chains: dict[tuple[str, ...], Chain] = {}
        self._published_at = time.monotonic()

    def run(self) -> WriteReport:
        """Do it: plan what is new, make every shard that lacks something, publish, and report."""
        writer = self.writer
        self._check_outputs()
        writer.publish(self.outputs)  # what a killed call committed and had not shown yet
        new = self._survey()
        self.feature_set.list_outputs(self.outputs, writer.paths.scratch)
        if new:
            writer.begin(self.shard_frames([u.frames for u in new]))
        most = writer.attributes.shard_frames
        for utterance in new:
            if utterance.frames > most:
                self.failed[utterance.id] = (
                    f"{utterance.frames} frames do not fit a shard of {most}; cut it in segments"
                )
        hop = writer.attributes.samples_per_frame
        fitting = [(u.id, int(u.samples or u.frames * hop), int(u.frames)) for u in new if u.id not in self.failed]
        if fitting:
            writer.append_plan(fitting, {})
        if writer.plans:
            writer.open_outputs(self.outputs)
        try:
            for task in self._tasks():
                self._make(task)
        except BaseException:
            with suppress(StoreError):
                writer.publish(self.outputs)
            raise
        writer.publish(self.outputs)
        self._retire()
        table, changed = redescribe(writer.table, {u.id: said_of(u) for u in self.listed.values()})
        if changed:
            writer.set_table(table)
        self._write_failures()
        return self._report()

    def _check_outputs(self) -> None:
        standing = self.writer.outputs.values()
        left_out = [output.name for output in standing if output.derivation is None and output.name not in self.given]
        if left_out:
            raise StoreError(
                f"{self.writer.paths.root} holds {', '.join(left_out)} too; every utterance has every output: write all of them"
            )

    def _survey(self) -> list[NewUtterance]:
        """The utterances that need a place; the failures among the others are noted."""
        writer, new = self.writer, []
        columns = (writer.table[name].to_pylist() for name in ("id", "frames", "audio_sha256"))
        stored = {name: (frames, audio) for name, frames, audio in zip(*columns, strict=True)}
        pending = {place.id for plan in writer.plans for place in plan.places if place.shard not in writer.commits}
        earlier = {entry["id"] for entry in read_failures(writer.paths)}
        for name, utterance in self.listed.items():
            if utterance.frames < 1:
                self.failed[name] = f"{utterance.frames} frames: there is nothing to store"
            elif name in pending:
                continue
            elif name in stored:
                frames, audio = stored[name]
                same = frames == utterance.frames and same_audio(utterance, audio)
                if not same and self.replace:
                    new.append(utterance)
                elif not same:
                    what = f"{utterance.frames} frames" if frames != utterance.frames else "other audio"
                    self.failed[name] = (
                        f"it stands with {frames} frames, and now has {what}; write(..., replace=True) stores it anew, "
                        f"another id or another split stores it too"
                    )
            elif name in earlier and (reason := self._attempt(utterance)):
                self.failed[name] = (
                    reason  # no place for what failed and fails again: no call would leave the plan alone
                )
            else:
                new.append(utterance)
        return new

    def _attempt(self, utterance: NewUtterance) -> str | None:
        try:
            self._stored(utterance, list(self.outputs.values()))
        except NotStorableError as error:
            return str(error)
        return None

    def _tasks(self) -> Iterable[_Task]:
        """What is to be made, in order: the shards that do not stand, then outputs of those that do."""
        writer = self.writer
        plan_of = {place.shard: plan.number for plan in writer.plans for place in plan.places}
        made, added = [], []
        for shard, places in sorted(writer.places.items()):
            commit = writer.commits.get(shard)
            places = writer.present(shard, places) if commit else places
            lacking = [o for o in self.outputs.values() if commit is None or o.name not in commit.outputs]
            if places and lacking:
                (added if commit else made).append(_Task(shard, plan_of[shard], places, lacking, commit))
        gone = [place.id for task in added for place in task.places if place.id not in self.listed]
        if gone:
            names = ", ".join(sorted({output.name for task in added for output in task.outputs}))
            raise StoreError(
                f"{names} cannot be added to {writer.paths.root}: {len(gone)} utterances that it holds are not among those "
                f"given, e.g. {gone[0]!r}; every utterance has every output: give them too"
            )
        return [*made, *added]

    def _make(self, task: _Task) -> None:
        """Ask for the features of a shard, and commit it."""
        items: dict[str, list[ShardItem]] = {output.name: [] for output in task.outputs}
        noise: dict[str, list[Ratio]] = {output.name: [] for output in task.outputs}
        failed: dict[str, str] = {}
        attributes = self.writer.attributes
        for place in task.places:
            try:
                stored = self._placed(place, task)
            except NotStorableError as error:
                failed[place.id] = str(error)
                continue
            row = place.row % attributes.shard_frames
            record = new_record(place, self.listed[place.id], attributes.split, attributes.sample_rate)
            for name, (values, affine, ratio) in stored.items():
                items[name].append(ShardItem(place.id, row, values, record, affine))
                if ratio is not None:
                    noise[name].append(ratio)
        if failed:
            self.failed |= failed
            self._write_failures()
        if task.commit and failed:
            return  # every output of a split holds the same utterances
        made = {"written_by": "FeatureWriter", "machine": platform.machine(), **versions()}
        absent = task.commit.absent if task.commit else sorted(failed)
        if len(failed) == len(task.places):
            self.writer.write_commit(Commit(task.shard, task.plan, 0, 0, absent, {}, made))
            return
        self.writer.commit(task.shard, task.plan, absent, items, self.outputs, noise, made)
        self.written.update(place.id for place in task.places if place.id not in failed)
        if time.monotonic() - self._published_at > PUBLISH_SECONDS:
            self.writer.publish(self.outputs)
            self._published_at = time.monotonic()

    def _placed(self, place: Place, task: _Task) -> dict[str, Stored]:
        if (utterance := self.listed.get(place.id)) is None:
            raise NotStorableError("it has a place in this split, but is not among the utterances given")
        if place.id in self.failed:
            raise NotStorableError(self.failed[place.id])
        if utterance.frames != place.frames:
            raise NotStorableError(
                f"its place was planned for {place.frames} frames, and now it has {utterance.frames}; "
                f"write it again, and it gets a new place"
            )
        return self._stored(utterance, task.outputs)

    def _stored(self, utterance: NewUtterance, outputs: Sequence[Output]) -> dict[str, Stored]:
        """The features of an utterance as some outputs store them; the derived ones are made of the others."""
        chain, given = self._chain(outputs), self.features(utterance.id)
        if not isinstance(given, Mapping):
            if len(self.given) > 1:
                raise StoreError(f"features({utterance.id!r}) gave one array; give {', '.join(self.given)} by name")
            given = dict.fromkeys(self.given, given)
        stored: dict[str, Stored] = {}
        for output in chain.given:
            if output.name not in given:
                raise StoreError(f"features({utterance.id!r}) gave no {output.name!r}; it gave {', '.join(given)}")
            values = np.asarray(given[output.name])
            if values.ndim != 2 or values.shape[1] != output.width or values.dtype.kind not in "fiu":
                raise StoreError(
                    f"features({utterance.id!r}) gave {output.name} as {list(values.shape)} {values.dtype}; "
                    f"expected numbers of shape [{utterance.frames}, {output.width}]"
                )
            if len(values) != utterance.frames:
                raise NotStorableError(f"{output.name}: {len(values)} frames came, {utterance.frames} were announced")
            stored[output.name] = keep(values, output)
        return chain.complete(stored)

    def _chain(self, outputs: Sequence[Output]) -> Chain:
        names = tuple(output.name for output in outputs)
        if names not in self._chains:
            self._chains[names] = chain_of(self.feature_set, outputs)
        return self._chains[names]

    def _retire(self) -> None:
        """Take what a newer place supersedes out of the older shard."""
        leaving = self.writer.superseded()
        for shard, names in leaving.items():
            self.writer.remove(shard, names)
        if leaving:
            self.writer.publish(self.outputs)

    def _write_failures(self) -> None:
        about = {*self.listed, *self.failed}
        others = [entry for entry in read_failures(self.writer.paths) if entry["id"] not in about]
        failed = [{"id": name, "reason": reason} for name, reason in self.failed.items()]
        if others or failed or self.writer.paths.failures.exists():
            write_failures(self.writer.paths, [*others, *failed])

    def _report(self) -> WriteReport:
        about, written = {*self.listed, *self.failed}, self.written - self.failed.keys()
        commits = self.writer.commits.values()
        entries = [entry for commit in commits for entry in commit.outputs.values()]
        return WriteReport(
            split=self.writer.attributes.split,
            path=str(self.writer.paths.root),
            utterances=len(about),
            written=len(written),
            reused=len(about) - len(written) - len(self.failed),
            failed=self.failed,
            frames=sum(commit.frames for commit in commits),
            bytes=sum(entry["size"] + entry.get("affine", {}).get("size", 0) for entry in entries),
        )


def versions() -> dict[str, str]:
    """The versions of the libraries that take part."""
    found: dict[str, str] = {"numpy": np.__version__}
    with suppress(PackageNotFoundError):
        found["encodeonce"] = version("encodeonce")
    return found
