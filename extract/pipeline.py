"""The stages of a run, overlapping through bounded queues: decode -> encode and keep -> write.

Decoding runs ahead in threads (soundfile releases the GIL). Encoder threads take the batches, bring the features into
their stored form and hand them on; one thread writes shards. What is in a shard, and which utterances of it share a
batch, is a function of its places and the batch limit alone, and a batch is always computed by as many threads.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
from encodeonce.extract.audio import AudioError, decode
from encodeonce.extract.batching import batches
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.encode import BatchEncoder
from encodeonce.extract.encoders.base import Encoder, EncoderError
from encodeonce.extract.tasks import ShardResult, ShardTask, Spool
from encodeonce.store.derive.chain import Stored
from encodeonce.store.format import ShardItem
from encodeonce.store.plan import Place
from encodeonce.store.quantize import NotStorableError, keep

DECODE_AHEAD_SECONDS = 600.0
DECODE_AHEAD = 256
"""Batches."""
SHARD_MEMORY_BYTES = 1 << 30
SHARDS_AHEAD = 2


@dataclass
class Stages:
    """Where the time goes: seconds of work of each stage, summed over its threads."""

    decode: float = 0.0
    encode: float = 0.0
    wait_for_audio: float = 0.0
    keep: float = 0.0
    write: float = 0.0
    wait_for_disk: float = 0.0
    load: float = 0.0


Copier = Callable[[str, ShardTask], Mapping[str, tuple[np.ndarray, np.ndarray | None]] | None]
"""(audio hash, task) -> the stored values and affine of what the encoder would give, where the same audio is in another split."""


@dataclass(frozen=True)
class Work:
    """How a run is spread: threads that decode, threads that encode, and the threads of torch in each of these."""

    decoders: int
    encoders: int
    threads: int


@dataclass
class Outcome:
    """What became of a batch: per utterance and output the stored values, the affine of int8, and the SNR in dB."""

    kept: dict[str, dict[str, Stored]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    copied: set[str] = field(default_factory=set)
    not_storable: set[str] = field(default_factory=set)

    def refuse(self, place: Place, error: NotStorableError) -> None:
        """Note an utterance whose outputs cannot be stored."""
        self.failed[place.id] = str(error)
        self.not_storable.add(place.id)

    def spool(self, spool: Spool) -> None:
        """Move the values to disk, where they look the same."""
        for outputs in self.kept.values():
            for name, (values, affine, noise) in outputs.items():
                outputs[name] = spool.keep(values), affine, noise


Batch = tuple[ShardResult, list[tuple[Place, Future]], bool]
"""The shard a batch belongs to, its places with their audio to come, and whether it is the shard's last."""


def limit_threads(threads: int) -> None:
    """Let torch compute with so many threads in the calling thread."""
    import torch

    torch.set_num_threads(threads)


class Pipeline:
    """Runs shard tasks through the stages and hands each finished shard to `commit`, in order, in one thread."""

    def __init__(
        self,
        encoder: Encoder,
        load: Callable[[], BatchEncoder],
        batch_samples: int,
        work: Work,
        shard_frames: int,
        spool_folder: Path,
        record: Callable[[Place, Utterance, str], dict],
        copy: Copier,
        commit: Callable[[ShardResult], None],
        progress: Callable[[float], None],
    ) -> None:
        self.encoder, self.load = encoder, load
        self.batch_samples, self.work = batch_samples, work
        self.shard_frames, self.spool_folder = shard_frames, spool_folder
        self.record, self.copy, self.commit, self.progress = record, copy, commit, progress
        self.stages = Stages()
        self.batch_encoder: BatchEncoder | None = None
        self.started: float | None = None
        self._clock, self._loading = Lock(), Lock()

    def run(self, tasks: Iterable[ShardTask]) -> None:
        """Make every shard. The first error of any stage ends the run; shards committed before it stand."""
        with (
            ThreadPoolExecutor(self.work.decoders, "decode", lambda: limit_threads(1)) as decoders,
            ThreadPoolExecutor(self.work.encoders, "encode", lambda: limit_threads(self.work.threads)) as encoders,
            ThreadPoolExecutor(1, "write") as writer,
        ):
            encoding: deque[tuple[Batch, Future[Outcome]]] = deque()
            writing: deque[Future[None]] = deque()
            try:
                for batch in self._decoded(decoders, tasks):
                    encoding.append((batch, encoders.submit(self._encode, batch)))
                    while len(encoding) > 2 * self.work.encoders:
                        self._collect(*encoding.popleft(), writer, writing)
                while encoding:
                    self._collect(*encoding.popleft(), writer, writing)
                while writing:
                    writing.popleft().result()
            except BaseException:
                for executor in (decoders, encoders, writer):
                    executor.shutdown(wait=False, cancel_futures=True)
                raise

    def _decoded(self, decoders: ThreadPoolExecutor, tasks: Iterable[ShardTask]) -> Iterator[Batch]:
        """The batches of all shards in turn, their audio being decoded some way ahead."""
        ahead: deque[Batch] = deque()
        seconds = 0.0
        for task in tasks:
            result = ShardResult(task)
            lengths = [max(place.samples, self.encoder.pads_to) for place in task.places]
            grouped = batches(lengths, self.batch_samples, self.encoder.mixes_lengths)
            for number, positions in enumerate(grouped):
                places = [task.places[i] for i in positions]
                group = [(place, decoders.submit(self._decode, task, place)) for place in places]
                ahead.append((result, group, number == len(grouped) - 1))
                seconds += self._seconds(group)
                while len(ahead) > self.work.encoders and (seconds > DECODE_AHEAD_SECONDS or len(ahead) > DECODE_AHEAD):
                    seconds -= self._seconds(ahead[0][1])
                    yield ahead.popleft()
        yield from ahead

    def _seconds(self, group: Sequence[tuple[Place, Future]]) -> float:
        return sum(place.samples for place, _ in group) / self.encoder.sample_rate

    def _decode(self, task: ShardTask, place: Place) -> tuple[str, np.ndarray]:
        if self.started is None:
            self.started = time.perf_counter()
        with self._timed("decode"):
            utterance = task.utterances.get(place.id)
            if utterance is None:
                raise AudioError("it was planned, but is not in the corpus any more")
            decoded = decode(utterance)
            digest = decoded.sha256(self.encoder.sample_rate)
            if task.expected_hashes.get(place.id, digest) != digest:
                raise AudioError(f"{utterance.audio} changed since it was stored; run again with --replace")
            samples = decoded.at(self.encoder.sample_rate)
            if len(samples) != place.samples:
                raise AudioError(
                    f"{utterance.audio} changed since its place was planned ({place.samples} samples then, {len(samples)} now); "
                    f"run again, and it gets a new place"
                )
            return digest, self.encoder.prepare(samples)

    def _encode(self, batch: Batch) -> Outcome:
        """One batch, from decoded audio to what will be stored; runs in an encoder thread."""
        result, group, _ = batch
        task, outcome = result.task, Outcome()
        places, audio = [], []
        for place, future in group:
            try:
                with self._timed("wait_for_audio"):
                    digest, samples = future.result()
            except AudioError as error:
                outcome.failed[place.id] = str(error)
                continue
            outcome.hashes[place.id] = digest
            stored = self.copy(digest, task)
            if stored is not None:
                outcome.copied.add(place.id)
                try:
                    outcome.kept[place.id] = task.chain.complete({n: (*pair, None) for n, pair in stored.items()})
                except NotStorableError as error:
                    outcome.refuse(place, error)
            else:
                places.append(place)
                audio.append(samples)
        if not audio:
            return outcome
        encoder = self._loaded()
        try:
            with self._timed("encode"):
                features = encoder.encode(audio)
        except RuntimeError as error:
            seconds = sum(map(len, audio)) / self.encoder.sample_rate
            raise EncoderError(
                f"{self.encoder.name} failed on a batch of {len(audio)} utterances, {seconds:.0f} s, among them "
                f"{places[0].id!r}: {str(error).splitlines()[0]}; try a smaller --batch-seconds"
            ) from error
        with self._timed("keep"):
            for place, frames in zip(places, features, strict=True):
                try:
                    given = {o.name: keep(frames[o.what], o) for o in task.chain.given}
                    outcome.kept[place.id] = task.chain.complete(given)
                except NotStorableError as error:
                    outcome.refuse(place, error)
            if task.bytes > SHARD_MEMORY_BYTES:
                outcome.spool(self._spool_of(result))
        return outcome

    def _spool_of(self, result: ShardResult) -> Spool:
        with self._clock:
            if result.spool is None:
                result.spool = Spool(self.spool_folder, result.task.bytes)
            return result.spool

    def _loaded(self) -> BatchEncoder:
        with self._loading:
            if self.batch_encoder is None:
                with self._timed("load"):
                    self.batch_encoder = self.load()
            return self.batch_encoder

    def _collect(
        self, batch: Batch, future: Future[Outcome], writer: ThreadPoolExecutor, writing: deque[Future[None]]
    ) -> None:
        """Take in a batch, in the order of the plan; hand the shard on when that was its last."""
        result, group, last = batch
        outcome = future.result()
        result.failed |= outcome.failed
        result.not_storable |= outcome.not_storable
        result.hashes |= outcome.hashes
        result.copied |= outcome.copied
        for place, _ in group:
            if place.id not in outcome.kept:
                continue
            record = self.record(place, result.task.utterances[place.id], outcome.hashes[place.id])
            for name, (values, affine, noise) in outcome.kept[place.id].items():
                item = ShardItem(place.id, place.row % self.shard_frames, values, record, affine)
                result.items.setdefault(name, {})[place.id] = item
                if noise is not None:
                    result.noise.setdefault(name, []).append(noise)
        self.progress(self._seconds(group))
        if last:
            with self._timed("wait_for_disk"):
                while len(writing) >= SHARDS_AHEAD or (writing and writing[0].done()):
                    writing.popleft().result()
            writing.append(writer.submit(self._write, result))

    def _write(self, result: ShardResult) -> None:
        with self._timed("write"):
            self.commit(result)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begun
            with self._clock:
                setattr(self.stages, stage, getattr(self.stages, stage) + spent)
