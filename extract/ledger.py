"""The books of a run on a split: finished shards are committed, failures written down, and everything counted."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from encodeonce.extract.cache import AudioFacts
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.memory import give_back
from encodeonce.extract.run import Run
from encodeonce.extract.survey import Survey
from encodeonce.extract.tasks import Finished
from encodeonce.store.commits import Commit
from encodeonce.store.failures import read_failures, write_failures
from encodeonce.store.writer import SplitWriter

PUBLISH_SECONDS = 30.0
"""Readers see new shards at least this often during a long run."""
MANY_FAILURES = 1000
"""From here on failures.jsonl is not written anew with every shard that has some: what a kill loses of it is tried again."""


@dataclass
class SplitReport:
    """What a run did for a split; every utterance counts once, as encoded, copied, reused or failed.

    `stages` holds the share of the time that each stage's threads worked, `limited_by` the stage that held the others back,
    `padding` the share of what was encoded that was padding, `workers` the processes that encoded.
    """

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
    workers: int = 0
    limited_by: str = ""
    stages: dict[str, float] = field(default_factory=dict)
    padding: float = 0.0


class Ledger:
    """What a run knows of a split's utterances, beside the values."""

    def __init__(self, run: Run, writer: SplitWriter, found: Survey) -> None:
        self.run, self.writer, self.found = run, writer, found
        self.encoded: set[str] = set()
        self.copied: set[str] = set()
        self._published_at = time.monotonic()
        self._noted_at = 0.0
        self._lock = Lock()
        self._learnt: list[tuple[Utterance, AudioFacts]] = []
        self.made: list[Mapping[str, Any]] = []
        """With what the shards were made, each kind once."""

    def take_in(self, finished: Finished) -> None:
        """Commit a finished shard: its files, failures, then the record. Files of several are written at the same time."""
        if finished.has_files:
            finished.write(self.writer)
        with self._lock:
            self._commit(finished)

    def _commit(self, finished: Finished) -> None:
        task, fates = finished.task, finished.fates
        if finished.made not in self.made:
            self.made.append(finished.made)
        if fates.failed:
            self._note_failures(finished)
        if not finished.complete:
            self.run.progress.say(
                f"Shard {task.shard} cannot get {', '.join(o.name for o in task.outputs)}: "
                f"{len(fates.failed)} of its utterances failed, and every output of a split holds the same utterances"
            )
            return
        for place in task.places:
            if place.id in fates.hashes and place.id not in fates.failed:
                facts = AudioFacts(place.samples, fates.hashes[place.id])
                self._learnt.append((self.found.utterances[place.id], facts))
        names = set(finished.names)
        if not names:
            # Nothing is left to wait for: what can be mended gets a new place when it decodes.
            absent = sorted(place.id for place in task.places)
            self.writer.write_commit(Commit(task.shard, task.plan, 0, 0, absent, {}, dict(finished.made)))
            return
        commit = self.writer.commits.get(task.shard)
        finished.commit(self.writer, commit.absent if commit else sorted(fates.failed))
        self.copied |= fates.copied & names
        self.encoded |= names - fates.copied
        if time.monotonic() - self._published_at > PUBLISH_SECONDS:
            self.writer.publish({})  # an output that joins is shown at the end: a thread may be writing where it lies
            self.flush()
            give_back()
            self._published_at = time.monotonic()

    def _note_failures(self, finished: Finished) -> None:
        task, fates, found = finished.task, finished.fates, self.found
        told = {name for name in fates.failed if name in found.failed}
        found.failed.update(fates.failed)
        for name in fates.not_storable:
            outputs = [output.name for output in task.outputs]
            found.not_storable[name] = {"audio_sha256": fates.hashes[name], "outputs": outputs}
        if len(found.failed) <= MANY_FAILURES or time.monotonic() - self._noted_at > PUBLISH_SECONDS:
            self.write_failures()
            self._noted_at = time.monotonic()
        for name, reason in sorted(fates.failed.items()):
            if name not in told:
                self.run.progress.failure(name, reason)

    def flush(self) -> None:
        """Let the user's cache keep what was learnt of audio files."""
        self.run.cache.keep_audio(self._learnt, self.run.encoder.sample_rate)
        self._learnt = []

    def _ours(self) -> set[str]:
        """The utterances that this process answers for: all, or those of its own shards; rank 0 for what has no place."""
        considered = {*self.found.considered, *self.encoded, *self.copied, *self.found.failed}
        if self.run.member is None:
            return considered
        shard_of = {place.id: place.shard for plan in self.writer.plans for place in plan.places}
        return {name for name in considered if self.writer.owns(shard_of.get(name, 0))}

    def write_failures(self) -> None:
        """Bring failures.jsonl up to date with what this process answers for."""
        ours, found = self._ours(), self.found
        with self.writer.alone():
            standing = read_failures(self.writer.paths)
            others = [entry for entry in standing if entry["id"] not in ours and entry["id"] in found.utterances]
            failed = [
                {**found.not_storable.get(name, {}), "id": name, "reason": reason}
                for name, reason in found.failed.items()
                if name in ours
            ]
            told = {entry["id"] for entry in others}
            entries = [*others, *(entry for entry in found.problems if entry["id"] not in told), *failed]
            if entries or self.writer.paths.failures.exists():
                write_failures(self.writer.paths, entries)

    def fill(self, report: SplitReport, audio: dict[str, int]) -> None:
        """Count, at the end, what this process answers for; `audio` tells the samples of utterances."""
        found, ours = self.found, self._ours()
        problems = found.problems if self.writer.owns(0) else []
        failed = set(found.failed) & ours
        report.encoded = len(self.encoded - failed)
        report.copied = len(self.copied - self.encoded - failed)
        report.failed = len(failed) + len(problems)
        report.utterances = len(ours) + len(problems)
        report.reused = report.utterances - report.encoded - report.copied - report.failed
        rate = self.run.encoder.sample_rate
        encoded_seconds = sum(audio[name] for name in self.encoded) / rate
        report.audio_seconds = round(sum(audio.get(name, 0) for name in ours - failed) / rate, 3)
        report.rtfx = round(encoded_seconds / report.pipeline_seconds, 2) if report.pipeline_seconds else 0.0
        entries = [entry for commit in self.writer.commits.values() for entry in commit.outputs.values()]
        report.bytes = sum(entry["size"] + entry.get("affine", {}).get("size", 0) for entry in entries)


def record_of_run(report: SplitReport, made: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run in the split, in runs/."""
    kept = {name: value for name, value in vars(report).items() if name not in ("store", "split")}
    return {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **kept, "made": made}
