"""One split's work: which shards lack what, who makes them, and what readers are shown."""

import shutil
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.corpora.base import Listing
from encodeonce.extract.ledger import Ledger, SplitReport, record_of_run
from encodeonce.extract.made import told_together
from encodeonce.extract.makers import Maker
from encodeonce.extract.memory import use_malloc
from encodeonce.extract.run import Run
from encodeonce.extract.stages import WORK, limiting
from encodeonce.extract.survey import Survey, survey, updated_table
from encodeonce.extract.tasks import Ground, ShardTask
from encodeonce.store.commits import committed_shards
from encodeonce.store.derive.chain import chain_of
from encodeonce.store.errors import StoreError
from encodeonce.store.files import DiskFullError, write_json
from encodeonce.store.layout import SET_FILE, Output, SplitPaths
from encodeonce.store.objects import name_below
from encodeonce.store.writer import SplitWriter


def extract_split(run: Run, name: str, maker: Maker) -> SplitReport:
    """Bring one split up to date with its corpus: encode what is new, and nothing that stands already."""
    begun = time.perf_counter()
    use_malloc()
    listing = list_corpus(run.request.data, name, run.request.corpus)
    run.progress.say(f"Found {len(listing.utterances)} utterances of {name} ({listing.layout} in {listing.root})")
    with SplitWriter(run.split_folder(name), run.attributes(name), member=run.member) as writer:
        # What a killed run committed and had not shown yet comes first: from here on table and records agree.
        writer.publish({**run.feature_set.outputs, **run.outputs})
        if writer.commits:
            run.write_feature_set(writer.outputs, writer.paths.scratch)
        report = SplitJob(run, name, writer, maker, listing).execute(begun)
    return report


class SplitJob:
    """The work on one split."""

    def __init__(self, run: Run, split: str, writer: SplitWriter, maker: Maker, listing: Listing) -> None:
        self.run, self.writer, self.maker, self.listing = run, writer, maker, listing
        self.found: Survey = survey(run, listing, writer)
        self.ledger = Ledger(run, writer, self.found)
        self.report = SplitReport(split, str(writer.paths.root))
        self.outputs: dict[str, Output] = {}
        self._root = listing.root if listing.root.is_dir() else listing.root.parent

    def execute(self, begun: float) -> SplitReport:
        """Do it: plan what is new, make every shard that lacks something, publish, and report."""
        writer = self.writer
        self._tell_shard_size()
        while not self._planned():
            self._survey()  # not inside alone(): other ranks would wait for it
        made, lacking = self._tasks()
        if made:
            kept = [name for name in writer.outputs if name not in self.run.outputs]
            if kept:
                self.run.progress.say(
                    f"New utterances get the outputs that the split holds already, too: {', '.join(kept)}"
                )
            self._make(made)
        writer.publish(self.outputs)
        self._retire()
        if lacking:
            lacking = self._tasks()[1]
            self._refuse_for_gone(lacking)
            self._make(lacking)
            writer.publish(self.outputs)
        self._keep_codebooks(writer.outputs.values())
        self._update_descriptions()
        self.ledger.write_failures()
        return self._finish(begun)

    def _survey(self) -> None:
        self.found = self.ledger.found = survey(self.run, self.listing, self.writer)

    def _planned(self) -> bool:
        """Give what is new its places; not where somebody else has done so since the survey."""
        with self.writer.alone():
            if self.found.plans != len(self.writer.plans):
                return False
            self._plan()
        return True

    def _plan(self) -> None:
        writer, found, say = self.writer, self.found, self.run.progress.say
        self.outputs = {**writer.outputs, **self.run.outputs}
        if found.new and not (self.run.feature_set.path / SET_FILE).exists():
            self.maker.prepare(self._given())  # an encoder that cannot be used leaves no empty feature set
        if found.new:
            self._check_room(sum(frames for _, _, frames in found.new))
            writer.begin(self.run.shard_frames([frames for _, _, frames in found.new]))
        self._refuse_too_long()
        for entry in found.problems:
            self.run.progress.failure(entry["id"], entry["reason"])
        for name, reason in found.failed.items():
            self.run.progress.failure(name, reason)
        if found.gone:
            fate = "taken out of the split" if self.run.request.drop_gone else "kept"
            say(f"{found.gone} stored utterances are not in the corpus any more; they are {fate}")
        if found.new:
            self.run.write_feature_set(self.outputs, writer.paths.scratch)
            writer.append_plan(found.new, self._copy_sources())
        if writer.plans:
            writer.open_outputs(self.outputs)

    def _tell_shard_size(self) -> None:
        wanted = self.run.request.shard_frames
        standing = self.writer.attributes.shard_frames
        if wanted is not None and self.writer.commits and self.run.shard_frames([0]) != standing:
            self.run.progress.say(
                f"The shards of this split hold {standing} frames, as it was created; --shard-frames is left aside"
            )

    def _refuse_too_long(self) -> None:
        most = self.writer.attributes.shard_frames
        fitting = []
        for name, samples, frames in self.found.new:
            if frames <= most:
                fitting.append((name, samples, frames))
            else:
                self.found.failed[name] = (
                    f"{self.found.utterances[name].audio}: {frames} frames do not fit a shard of {most}, "
                    f"fixed when the split was created; cut the audio into segments, or put it in a split of its own"
                )
        self.found.new = fitting

    def _check_room(self, frames: int) -> None:
        needed = int(frames * sum(o.width * np.dtype(o.dtype).itemsize for o in self.outputs.values()) * 1.03)
        root = self.writer.paths.root
        if not isinstance(root, Path):
            return  # an object store tells nobody how much room it has
        free = shutil.disk_usage(root).free
        if needed > free:
            raise DiskFullError(
                f"{root} needs about {needed / 1e6:.1f} MB and has {free / 1e6:.1f} MB free; "
                f"free space, give another --store, or take --dtype int8"
            )

    def _copy_sources(self) -> dict[str, int]:
        """The other splits of the feature set, each with its number of shards at this moment."""
        sources = {}
        for path in self.run.feature_set.splits():
            if path != self.writer.paths.root and (SplitPaths(path).table).exists():
                name = name_below(path, self.run.feature_set.path)
                sources[name] = max(committed_shards(SplitPaths(path)), default=-1) + 1
        return {name: shards for name, shards in sources.items() if shards}

    def _retire(self) -> None:
        """Take utterances out of the shards that a newer place supersedes, or whose files are gone and may be dropped.

        Each writer tends its own shards, and the last one everybody's.
        """
        writer = self.writer
        with writer.alone():
            leaving = writer.superseded()
            if self.run.request.drop_gone:
                for name, shard in writer.live_shards().items():
                    if name not in self.found.utterances:
                        leaving.setdefault(shard, set()).add(name)
            leaving = {shard: names for shard, names in leaving.items() if writer.owns(shard) or writer.last}
            for shard, names in leaving.items():
                writer.remove(shard, names)
            if leaving:
                writer.publish(self.outputs)

    def _tasks(self) -> tuple[list[ShardTask], list[ShardTask]]:
        """The planned shards that are to be made here, and those that stand and lack an output; in order."""
        writer = self.writer
        plan_of = {place.shard: plan.number for plan in writer.plans for place in plan.places}
        hashes = dict(zip(*(writer.table[name].to_pylist() for name in ("id", "audio_sha256")), strict=True))
        made: list[ShardTask] = []
        added: list[ShardTask] = []
        for shard, places in sorted(writer.places.items()):
            if not writer.owns(shard):
                continue
            commit = writer.commits.get(shard)
            if commit is None:
                lacking, expected = list(self.outputs.values()), {}
            else:
                places = writer.present(shard, places)
                lacking = [o for o in self.outputs.values() if o.name not in commit.outputs]
                expected = {place.id: hashes.get(place.id, "") for place in places}
            if places and lacking:
                utterances = {p.id: self.found.utterances[p.id] for p in places if p.id in self.found.utterances}
                task = ShardTask(shard, plan_of[shard], places, utterances, lacking, expected)
                (added if commit else made).append(task)
        return made, added

    def _refuse_for_gone(self, tasks: list[ShardTask]) -> None:
        gone = [place.id for task in tasks for place in task.places if place.id not in self.found.utterances]
        if gone:
            names = ", ".join(sorted({output.name for task in tasks for output in task.outputs}))
            raise StoreError(
                f"{names} cannot be added to {self.report.split}: {len(gone)} utterances that it holds are not in the corpus any "
                f"more, e.g. {gone[0]!r}; put them back, or take them out of the split with --drop-gone"
            )

    def _make(self, tasks: list[ShardTask]) -> None:
        if not tasks:
            return
        run, writer, maker = self.run, self.writer, self.maker
        run.write_feature_set(self.outputs, writer.paths.scratch)
        copy_from = {plan.number: plan.copy_from for plan in writer.plans}
        scratch = writer.paths.scratch.absolute() if isinstance(writer.paths.scratch, Path) else writer.paths.scratch
        ground = Ground(scratch, writer.attributes, self._root, copy_from)
        self._keep_codebooks(self._given())
        seconds = sum(task.samples for task in tasks) / run.encoder.sample_rate
        with run.progress.task(f"Encoding {self.report.split}", seconds):
            try:
                maker.make(tasks, ground, self._given(), self.ledger.take_in)
            except BaseException:
                maker.close()  # nobody writes any more when the split is let go
                self._keep_what_is_done()
                raise

    def _given(self) -> list[Output]:
        """What the encoder has to give: an output of each kind; others are the same in another dtype, or derived."""
        chain = chain_of(self.run.feature_set, self.outputs.values())
        return list({output.what: output for output in chain.given}.values())

    def _keep_codebooks(self, outputs: Iterable[Output]) -> None:
        """Write the codebooks of what a codec gives, where they are not there."""
        own = [output for output in outputs if output.codebook_sizes and output.derivation is None]
        if all(self.run.feature_set.codebooks(output.name).exists() for output in own):
            return
        loaded = self.maker.encoder(self._given()).loaded
        for output in own:
            path, books = self.run.feature_set.codebooks(output.name), loaded.codebooks(output)
            if books is not None and not path.exists():
                books.write(path, self.writer.paths.scratch)

    def _keep_what_is_done(self) -> None:
        try:
            self.ledger.write_failures()
            self.writer.publish(self.outputs)
        except StoreError as error:
            self.run.progress.detail(f"could not publish the shards that are finished ({error}); the next run will")

    def _update_descriptions(self) -> None:
        with self.writer.alone():
            if not self.writer.paths.table.exists():
                return
            table, changed = updated_table(self.writer.table, self.found.utterances, self._root)
            if not changed:
                return
            self.writer.set_table(table)
        if not (self.ledger.encoded or self.ledger.copied):
            self.run.progress.say(f"Updated what the corpus says of {changed} utterances; nothing had to be encoded")

    def _finish(self, begun: float) -> SplitReport:
        report, ledger, maker = self.report, self.ledger, self.maker
        ledger.flush()
        self._count(maker)
        self._tell_unmade()
        ledger.fill(report, {place.id: place.samples for plan in self.writer.plans for place in plan.places})
        report.wall_seconds = round(time.perf_counter() - begun, 3)
        if ledger.encoded or ledger.copied:
            path = (
                self.writer.paths.runs / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:8]}.json"
            )
            write_json(path, record_of_run(report, told_together(ledger.made)), self.writer.paths.scratch)
        return report

    def _tell_unmade(self) -> None:
        """Tell a rank's user what the others have not made yet."""
        writer = self.writer
        left = [shard for shard in writer.places if shard not in writer.commits and not writer.owns(shard)]
        if left:
            self.run.progress.say(
                f"{len(left)} shards of other ranks are not made yet; where no rank is at them any more, start it again, or run the "
                f"same command without --rank"
            )

    def _count(self, maker: Maker) -> None:
        """What the makers counted for this split."""
        report, stages, say = self.report, maker.stages, self.run.progress
        wall = maker.seconds
        if not wall:
            return
        shares = stages.shares(wall)
        report.pipeline_seconds = round(wall, 3)
        report.encoder_seconds = round(stages.seconds["encode"] / stages.threads.get("encode", 1), 3)
        report.stages = {stage: round(share, 4) for stage, share in shares.items()}
        report.limited_by, report.padding = WORK[limiting(shares)], round(stages.padding, 4)
        report.workers = maker.workers
        if maker.again:
            say.say(
                f"{maker.again} utterances gave NaN or infinity in {self.run.precision} and were encoded again in float32"
            )
        told = ", ".join(f"{WORK[stage]} {100 * share:.0f} %" for stage, share in shares.items())
        waits = f"waiting for audio {stages.seconds['wait_for_audio']:.1f} s, for the disk {stages.seconds['wait_for_disk']:.1f} s"
        say.say(f"Limited by {report.limited_by}; at work: {told}; padding {100 * stages.padding:.1f} %")
        say.detail(
            f"Over {stages.threads.get('encode', 1)} encoder threads: {waits}; loading {maker.load_seconds:.1f} s"
        )
