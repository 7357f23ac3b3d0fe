"""One split's work: which shards lack what, made through the pipeline, committed, and shown to readers."""

import platform
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from encodeonce.extract.cache import AudioFacts
from encodeonce.extract.copies import Copies
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.run import Run
from encodeonce.extract.survey import Survey, describe, survey, updated_table
from encodeonce.extract.tasks import ShardResult, ShardTask
from encodeonce.store.commits import Commit, committed_shards
from encodeonce.store.derive.chain import Chain, chain_of
from encodeonce.store.errors import StoreError
from encodeonce.store.failures import read_failures, write_failures
from encodeonce.store.files import DiskFullError
from encodeonce.store.layout import SET_FILE, Output, SplitPaths
from encodeonce.store.objects import name_below
from encodeonce.store.table import record_of
from encodeonce.store.writer import SplitWriter

if TYPE_CHECKING:
    from encodeonce.extract.encode import BatchEncoder

PUBLISH_SECONDS = 30.0
"""Readers see new shards at least this often during a long run."""


@dataclass
class SplitReport:
    """What a run did for a split; every utterance counts once, as encoded, copied, reused or failed."""

    split: str
    store: str
    utterances: int = 0
    encoded: int = 0
    copied: int = 0
    reused: int = 0
    failed: int = 0
    audio_seconds: float = 0.0
    wall_seconds: float = 0.0
    pipeline_seconds: float = 0.0
    encoder_seconds: float = 0.0
    rtfx: float = 0.0
    bytes: int = 0


def extract_split(run: Run, name: str) -> SplitReport:
    """Bring one split up to date with its corpus: encode what is new, and nothing that stands already."""
    begun = time.perf_counter()
    listing = list_corpus(run.request.data, name, run.request.corpus)
    run.progress.say(f"Found {len(listing.utterances)} utterances of {name} ({listing.layout} in {listing.root})")
    root = listing.root if listing.root.is_dir() else listing.root.parent
    with SplitWriter(run.split_folder(name), run.attributes(name)) as writer:
        # What a killed run committed and had not shown yet comes first: from here on table and records agree.
        writer.publish({**run.feature_set.outputs, **run.outputs})
        if writer.commits:
            run.write_feature_set(writer.outputs, writer.paths.scratch)
        found = survey(run, listing, writer)
        report = SplitJob(run, name, writer, root, found).execute()
    report.wall_seconds = round(time.perf_counter() - begun, 3)
    return report


class SplitJob:
    """The work on one split that a survey found."""

    def __init__(self, run: Run, split: str, writer: SplitWriter, root: Path, found: Survey) -> None:
        self.run, self.writer, self.root, self.found = run, writer, root, found
        self.report = SplitReport(split, str(writer.paths.root))
        self.outputs: dict[str, Output] = {}
        self.encoded: set[str] = set()
        self.copied: set[str] = set()
        self._made: dict[str, Any] = {}
        self._chains: dict[tuple[str, ...], Chain] = {}
        self._published_at = time.monotonic()
        self._encoder: BatchEncoder | None = None
        self._learnt: list[tuple[Utterance, AudioFacts]] = []

    def execute(self) -> SplitReport:
        """Do it: plan what is new, make every shard that lacks something, publish, and report."""
        writer, found, say = self.writer, self.found, self.run.progress.say
        self._tell_shard_size()
        self.outputs = {**writer.outputs, **self.run.outputs}
        if found.new and not (self.run.feature_set.path / SET_FILE).exists():
            self._load_first()
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
        kept = [name for name in writer.outputs if name not in self.run.outputs]
        if found.new:
            self.run.write_feature_set(self.outputs, writer.paths.scratch)
            writer.append_plan(found.new, self._copy_sources())
        if writer.plans:
            writer.open_outputs(self.outputs)
        made, lacking = self._tasks()
        if made:
            if kept:
                say(f"New utterances get the outputs that the split holds already, too: {', '.join(kept)}")
            self._encode(made)
        writer.publish(self.outputs)
        self._retire()
        if lacking:
            lacking = self._tasks()[1]
            self._refuse_for_gone(lacking)
            self._encode(lacking)
            writer.publish(self.outputs)
        self._restore_codebooks()
        self._update_descriptions()
        self._write_failures()
        return self._finish()

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
        """Take utterances out of the shards that a newer place supersedes, or whose files are gone and may be dropped."""
        writer, leaving = self.writer, self.writer.superseded()
        if self.run.request.drop_gone:
            for name, shard in writer.live_shards().items():
                if name not in self.found.utterances:
                    leaving.setdefault(shard, set()).add(name)
        for shard, names in leaving.items():
            writer.remove(shard, names)
        if leaving:
            writer.publish(self.outputs)

    def _tasks(self) -> tuple[list[ShardTask], list[ShardTask]]:
        """The planned shards that are to be made, and those that stand and lack an output; in order."""
        writer = self.writer
        plan_of = {place.shard: plan.number for plan in writer.plans for place in plan.places}
        hashes = dict(zip(*(writer.table[name].to_pylist() for name in ("id", "audio_sha256")), strict=True))
        made: list[ShardTask] = []
        added: list[ShardTask] = []
        for shard, places in sorted(writer.places.items()):
            commit = writer.commits.get(shard)
            if commit is None:
                lacking, expected = list(self.outputs.values()), {}
            else:
                places = writer.present(shard, places)
                lacking = [o for o in self.outputs.values() if o.name not in commit.outputs]
                expected = {place.id: hashes.get(place.id, "") for place in places}
            if places and lacking:
                chain = self._chain(lacking)
                task = ShardTask(shard, plan_of[shard], places, self.found.utterances, lacking, chain, expected)
                (added if commit else made).append(task)
        return made, added

    def _chain(self, outputs: list[Output]) -> Chain:
        """How some outputs come to be; what they are derived with is read once."""
        names = tuple(output.name for output in outputs)
        if names not in self._chains:
            self._chains[names] = chain_of(self.run.feature_set, outputs)
        return self._chains[names]

    def _refuse_for_gone(self, tasks: list[ShardTask]) -> None:
        gone = [place.id for task in tasks for place in task.places if place.id not in self.found.utterances]
        if gone:
            names = ", ".join(sorted({output.name for task in tasks for output in task.outputs}))
            raise StoreError(
                f"{names} cannot be added to {self.report.split}: {len(gone)} utterances that it holds are not in the corpus any "
                f"more, e.g. {gone[0]!r}; put them back, or take them out of the split with --drop-gone"
            )

    def _encode(self, tasks: list[ShardTask]) -> None:
        from encodeonce.extract.pipeline import Pipeline

        run = self.run
        if not tasks:
            return
        run.write_feature_set(self.outputs, self.writer.paths.scratch)
        seconds = sum(place.samples for task in tasks for place in task.places) / run.encoder.sample_rate
        device = run.find_device()
        batch_seconds, work = run.batch_seconds(), run.work()
        self._made = {
            "device": device,
            "threads": work.threads,
            "batch_seconds": batch_seconds,
            "machine": platform.machine(),
            **run.versions(),
        }
        pipeline = Pipeline(
            encoder=run.encoder,
            load=lambda: self._load(self._given()),
            batch_samples=int(batch_seconds * run.encoder.sample_rate),
            work=work,
            shard_frames=self.writer.attributes.shard_frames,
            spool_folder=self.writer.spool_folder,
            record=lambda place, utterance, digest: record_of(
                place, digest, run.encoder.sample_rate, describe(utterance, self.root)
            ),
            copy=Copies(run.feature_set.path, self.writer.plans, run.progress).find,
            commit=self._commit,
            progress=run.progress.advance,
        )
        with run.progress.task(f"Encoding {self.report.split}", seconds):
            try:
                pipeline.run(tasks)
            except BaseException:
                self._keep_what_is_done()
                raise
        stages = pipeline.stages
        if pipeline.started is not None:
            self.report.pipeline_seconds += max(0.0, time.perf_counter() - pipeline.started - stages.load)
        self.report.encoder_seconds += stages.encode / work.encoders
        if pipeline.batch_encoder and pipeline.batch_encoder.again:
            run.progress.say(
                f"{pipeline.batch_encoder.again} utterances gave NaN or infinity in {run.precision} and were encoded again in float32"
            )
        run.progress.detail(
            f"Where the time went, over {work.encoders} encoder threads: encoder {stages.encode:.1f} s, waiting for audio "
            f"{stages.wait_for_audio:.1f} s, quantising {stages.keep:.1f} s; beside them decoding {stages.decode:.1f} s, "
            f"writing {stages.write:.1f} s, waiting for the disk {stages.wait_for_disk:.1f} s; loading the encoder {stages.load:.1f} s"
        )

    def _load(self, outputs: list[Output]) -> "BatchEncoder":
        if self._encoder is None:
            self._encoder = self.run.load(outputs)
            for output in self.outputs.values():
                path = self.run.feature_set.codebooks(output.name)
                own = output.codebook_sizes and output.derivation is None
                books = self._encoder.loaded.codebooks(output) if own else None
                if books is not None and not path.exists():
                    books.write(path, self.writer.paths.scratch)
        return self._encoder

    def _load_first(self) -> None:
        """Load the encoder before anything is written, so that a checkpoint that cannot be used leaves no empty feature set."""
        from encodeonce.extract.pipeline import limit_threads

        threads = self.run.work().threads
        with ThreadPoolExecutor(1, "load", lambda: limit_threads(threads)) as loader:
            loader.submit(self._load, self._given()).result()

    def _given(self) -> list[Output]:
        """What the encoder has to give: an output of each kind; others are the same in another dtype, or derived."""
        return list({output.what: output for output in self._chain(list(self.outputs.values())).given}.values())

    def _restore_codebooks(self) -> None:
        """Load the encoder for codebooks that are gone, also where nothing has to be encoded."""
        own = [output for output in self.writer.outputs.values() if output.codebook_sizes and output.derivation is None]
        if any(not self.run.feature_set.codebooks(output.name).exists() for output in own):
            self._load(own)

    def _keep_what_is_done(self) -> None:
        try:
            self.writer.publish(self.outputs)
        except StoreError as error:
            self.run.progress.detail(f"could not publish the shards that are finished ({error}); the next run will")

    def _commit(self, result: ShardResult) -> None:
        """Commit a finished shard: failures first, then the shard files, then the record."""
        task, found = result.task, self.found
        if result.failed:
            told = {name for name in result.failed if name in found.failed}
            found.failed.update(result.failed)
            for name in result.not_storable:
                outputs = [output.name for output in task.outputs]
                found.not_storable[name] = {"audio_sha256": result.hashes[name], "outputs": outputs}
            self._write_failures()
            for name, reason in sorted(result.failed.items()):
                if name not in told:
                    self.run.progress.failure(name, reason)
        if task.expected_hashes and result.failed:
            self.run.progress.say(
                f"Shard {task.shard} cannot get {', '.join(o.name for o in task.outputs)}: "
                f"{len(result.failed)} of its utterances failed, and every output of a split holds the same utterances"
            )
            return
        names = [place.id for place in task.places if place.id not in result.failed]
        for place in task.places:
            if place.id in result.hashes and place.id not in result.failed:
                facts = AudioFacts(place.samples, result.hashes[place.id])
                self._learnt.append((found.utterances[place.id], facts))
        if not names:
            # Nothing is left to wait for: what can be mended gets a new place when it decodes.
            absent = [place.id for place in task.places]
            self.writer.write_commit(Commit(task.shard, task.plan, 0, 0, sorted(absent), {}, self._made))
            return
        commit = self.writer.commits.get(task.shard)
        absent = commit.absent if commit else sorted(result.failed)
        items = {o.name: [result.items[o.name][name] for name in names] for o in task.outputs}
        specs = {output.name: output for output in task.outputs}
        self.writer.commit(task.shard, task.plan, absent, items, specs, result.noise, self._made)
        self.copied |= result.copied & set(names)
        self.encoded |= set(names) - result.copied
        if time.monotonic() - self._published_at > PUBLISH_SECONDS:
            self.writer.publish(self.outputs)
            self._flush_cache()
            self._published_at = time.monotonic()

    def _flush_cache(self) -> None:
        self.run.cache.keep_audio(self._learnt, self.run.encoder.sample_rate)
        self._learnt = []

    def _update_descriptions(self) -> None:
        if not self.writer.paths.table.exists():
            return
        table, changed = updated_table(self.writer.table, self.found.utterances, self.root)
        if changed:
            self.writer.set_table(table)
            done = self.encoded | self.copied
            if changed and not done:
                self.run.progress.say(
                    f"Updated what the corpus says of {changed} utterances; nothing had to be encoded"
                )

    def _write_failures(self) -> None:
        about = {*self.found.considered, *self.found.failed, *self.encoded, *self.copied}
        others = [
            entry
            for entry in read_failures(self.writer.paths)
            if entry["id"] not in about and entry["id"] in self.found.utterances
        ]
        failed = [
            {**self.found.not_storable.get(name, {}), "id": name, "reason": reason}
            for name, reason in self.found.failed.items()
        ]
        entries = [*others, *self.found.problems, *failed]
        if entries or self.writer.paths.failures.exists():
            write_failures(self.writer.paths, entries)

    def _finish(self) -> SplitReport:
        report, found = self.report, self.found
        self._flush_cache()
        about = {*found.considered, *self.encoded, *self.copied, *found.failed}
        failed = set(found.failed)
        report.encoded = len(self.encoded - failed)
        report.copied = len(self.copied - self.encoded - failed)
        report.failed = len(failed) + len(found.problems)
        report.utterances = len(about) + len(found.problems)
        report.reused = report.utterances - report.encoded - report.copied - report.failed
        seconds = {p.id: p.samples for plan in self.writer.plans for p in plan.places}
        rate = self.run.encoder.sample_rate
        encoded_seconds = sum(seconds[name] for name in self.encoded) / rate
        report.audio_seconds = round(sum(seconds.get(name, 0) for name in about - failed) / rate, 3)
        report.rtfx = round(encoded_seconds / report.pipeline_seconds, 2) if report.pipeline_seconds else 0.0
        report.pipeline_seconds = round(report.pipeline_seconds, 3)
        report.encoder_seconds = round(report.encoder_seconds, 3)
        report.bytes = sum(
            entry["size"] + entry.get("affine", {}).get("size", 0)
            for commit in self.writer.commits.values()
            for entry in commit.outputs.values()
        )
        return report
