"""The stages of a run in one process, overlapping through bounded queues: decode -> encode and keep -> write.

Decoding runs ahead in threads (soundfile releases the GIL). Encoder threads take the batches and bring the features into
their stored form, on a GPU while it computes the next batch; two threads write shards. What is in a shard, and which
utterances of it share a batch, is a function of its places and the batch limit alone, and a batch is always computed by
as many threads: the bytes of a shard never depend on what else a run did.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from encodeonce.extract.audio import AudioError, decode
from encodeonce.extract.batching import batches
from encodeonce.extract.copies import Copies
from encodeonce.extract.device import use
from encodeonce.extract.encode import BatchEncoder, Pending
from encodeonce.extract.memory import tidied
from encodeonce.extract.stages import WRITERS, Stages, Work
from encodeonce.extract.survey import describe
from encodeonce.extract.tasks import Fates, Ground, ShardResult, ShardTask, Spool
from encodeonce.store.derive.chain import Chain, Stored, chain_of
from encodeonce.store.format import ShardItem
from encodeonce.store.plan import Place
from encodeonce.store.quantize import NotStorableError
from encodeonce.store.table import record_of

if TYPE_CHECKING:
    from encodeonce.extract.run import Run

DECODE_AHEAD_SECONDS = 600.0
DECODE_AHEAD = 256
"""Batches."""
SHARD_MEMORY_BYTES = 1 << 30
SHARDS_AHEAD = 2


Loaded = TypeVar("Loaded")
Decoded = tuple[str, np.ndarray]
"""The hash of the audio, and the samples as the encoder takes them."""


@dataclass
class Batch:
    """Some utterances of a shard that are encoded together, their audio being decoded."""

    result: ShardResult
    group: list[tuple[Place, "Future[Decoded]"]]
    last: bool
    """Whether it is the shard's last."""

    @property
    def samples(self) -> int:
        """The audio of all its utterances."""
        return sum(place.samples for place, _ in self.group)


@dataclass
class Outcome:
    """What became of a batch: per utterance and output what will be stored."""

    fates: Fates = field(default_factory=Fates)
    kept: dict[str, dict[str, Stored]] = field(default_factory=dict)

    def refuse(self, place: Place, error: NotStorableError) -> None:
        """Note an utterance whose outputs cannot be stored."""
        self.fates.failed[place.id] = str(error)
        self.fates.not_storable.add(place.id)

    def spool(self, spool: Spool) -> None:
        """Move the values to disk, where they look the same."""
        for outputs in self.kept.values():
            for name, (values, affine, noise) in outputs.items():
                outputs[name] = spool.keep(values), affine, noise


def limit_threads(threads: int, device: str = "cpu") -> None:
    """Let torch compute with so many threads in the calling thread, and on a device of its own."""
    import torch

    torch.set_num_threads(threads)
    use(device)


def in_threads(threads: int, function: Callable[[], Loaded]) -> Loaded:
    """What a function gives, computed with so many threads of torch: what an encoder computes once, while it is loaded, too."""
    with tidied(), ThreadPoolExecutor(1, "load", lambda: limit_threads(threads)) as executor:
        return executor.submit(function).result()


class Pipeline:
    """Makes shards in this process, in order, and hands each to `deliver` in a thread of its own, two at a time at most.

    Args:
        work: how it is spread over this process.
        load: gives the encoder, when there is something to encode.
        progress: is told of samples that are done.
        copies: that know the other splits already.
    """

    def __init__(
        self,
        run: "Run",
        ground: Ground,
        work: Work,
        load: Callable[[], BatchEncoder],
        deliver: Callable[[ShardResult], None],
        progress: Callable[[int], None],
        stages: Stages,
        copies: Copies | None = None,
    ) -> None:
        self.encoder, self.load, self.deliver, self.progress = run.encoder, load, deliver, progress
        self.ground, self.work = ground, work
        self.made = run.made(work)
        self.batch_samples = run.batch_samples()
        self.stages = stages
        self._encoder: BatchEncoder | None = None
        self.started: float | None = None
        self._feature_set = run.feature_set
        self._copies = copies or Copies(run.feature_set.path, ground.copy_from, run.progress)
        self._chains: dict[tuple[str, ...], Chain] = {}
        self._lock, self._loading = Lock(), Lock()

    def run(self, tasks: Iterable[ShardTask]) -> None:
        """Make every shard. The first error of any stage ends the run; shards delivered before it stand."""
        use(self.work.device)  # which this thread waits for
        with (
            ThreadPoolExecutor(self.work.decoders, "decode", lambda: limit_threads(1)) as decoders,
            ThreadPoolExecutor(
                self.work.encoders, "encode", limit_threads, (self.work.threads, self.work.device)
            ) as encoders,
            ThreadPoolExecutor(WRITERS, "write") as writers,
        ):
            encoding: deque[tuple[Batch, Future[Callable[[], Outcome]]]] = deque()
            writing: deque[Future[None]] = deque()
            try:
                for batch in self._decoded(decoders, tasks):
                    encoding.append((batch, encoders.submit(self._encode, batch)))
                    while len(encoding) > 2 * self.work.encoders:
                        self._collect(*encoding.popleft(), writers, writing)
                while encoding:
                    self._collect(*encoding.popleft(), writers, writing)
                while writing:
                    writing.popleft().result()
            except BaseException:
                for executor in (decoders, encoders, writers):
                    executor.shutdown(wait=False, cancel_futures=True)
                raise

    def _decoded(self, decoders: ThreadPoolExecutor, tasks: Iterable[ShardTask]) -> Iterator[Batch]:
        """The batches of all shards in turn, their audio being decoded some way ahead."""
        ahead: deque[Batch] = deque()
        most, samples = DECODE_AHEAD_SECONDS * self.encoder.sample_rate, 0
        for task in tasks:
            result = ShardResult(task, self.made)
            lengths = [max(place.samples, self.encoder.pads_to) for place in task.places]
            grouped = batches(lengths, self.batch_samples, self.encoder.mixes_lengths)
            for number, positions in enumerate(grouped):
                places = [task.places[i] for i in positions]
                group = [(place, decoders.submit(self._decode, task, place)) for place in places]
                ahead.append(Batch(result, group, number == len(grouped) - 1))
                samples += ahead[-1].samples
                while len(ahead) > self.work.encoders and (samples > most or len(ahead) > DECODE_AHEAD):
                    samples -= ahead[0].samples
                    yield ahead.popleft()
        yield from ahead

    def _decode(self, task: ShardTask, place: Place) -> Decoded:
        if self.started is None:
            self.started = time.perf_counter()
        with self.stages.timed("decode"):
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

    def _encode(self, batch: Batch) -> Callable[[], Outcome]:
        """One batch, from decoded audio to what will be stored; runs in an encoder thread.

        Gives what has the outcome: at once where the encoder computes in this thread; on a GPU it waits for its values.
        """
        task, outcome = batch.result.task, Outcome()
        chain, places, audio = self._chain(task), [], []
        for place, future in batch.group:
            try:
                with self.stages.timed("wait_for_audio"):
                    digest, samples = future.result()
            except AudioError as error:
                outcome.fates.failed[place.id] = str(error)
                continue
            outcome.fates.hashes[place.id] = digest
            stored = self._copies.find(digest, task.plan, chain.given)
            if stored is not None:
                outcome.fates.copied.add(place.id)
                self._complete(outcome, place, stored, chain)
            else:
                places.append(place)
                audio.append(samples)
        if not audio:
            return lambda: outcome
        encoder, lengths = self._loaded(), [len(samples) for samples in audio]
        self.stages.add_batch(sum(lengths), max(lengths) * len(lengths))
        begun = time.perf_counter()
        with encoder.failing_plainly(self._about(places)):
            pending = encoder.begin(audio, chain.given)
        if not pending.in_flight:
            self.stages.add("encode", time.perf_counter() - begun)
        finish = partial(self._finish, batch.result, places, pending, outcome)
        if pending.in_flight:
            return finish
        finish()
        return lambda: outcome

    def _finish(self, result: ShardResult, places: Sequence[Place], pending: Pending, outcome: Outcome) -> Outcome:
        """Take the values of a batch as they are to be stored, and derive of them what is derived."""
        chain = self._chain(result.task)
        waiting = self.stages.timed("wait_for_device" if pending.in_flight else "keep")
        with self._loaded().failing_plainly(self._about(places)), waiting:
            kept = pending.stored()  # what a GPU could not do shows here
        self.stages.add("encode", pending.seconds())
        with self.stages.timed("keep"):
            for place, given in zip(places, kept, strict=True):
                self._complete(outcome, place, given, chain)
            if result.task.bytes > SHARD_MEMORY_BYTES:
                outcome.spool(self._spool_of(result))
        return outcome

    def _complete(
        self, outcome: Outcome, place: Place, given: Mapping[str, Stored | NotStorableError], chain: Chain
    ) -> None:
        try:
            stored: dict[str, Stored] = {}
            for name, value in given.items():
                if isinstance(value, NotStorableError):
                    raise value
                stored[name] = value
            outcome.kept[place.id] = chain.complete(stored)
        except NotStorableError as error:
            outcome.refuse(place, error)

    def _about(self, places: Sequence[Place]) -> str:
        seconds = sum(place.samples for place in places) / self.encoder.sample_rate
        return f"a batch of {len(places)} utterances, {seconds:.0f} s, among them {places[0].id!r}"

    def _spool_of(self, result: ShardResult) -> Spool:
        with self._lock:
            if result.spool is None:
                result.spool = Spool(self.ground.spool_folder, result.task.bytes)
            return result.spool

    def _chain(self, task: ShardTask) -> Chain:
        """How the outputs of a task come to be; what they are derived with is read once."""
        names = tuple(output.name for output in task.outputs)
        with self._lock:
            if names not in self._chains:
                self._chains[names] = chain_of(self._feature_set, task.outputs)
            return self._chains[names]

    def _loaded(self) -> BatchEncoder:
        with self._loading:
            if self._encoder is None:
                with self.stages.timed("load"):
                    self._encoder = self.load()
            return self._encoder

    def _collect(
        self,
        batch: Batch,
        future: "Future[Callable[[], Outcome]]",
        writers: ThreadPoolExecutor,
        writing: deque[Future[None]],
    ) -> None:
        """Take in a batch, in the order of the plan; hand the shard on when that was its last."""
        outcome, result = future.result()(), batch.result
        result.fates.add(outcome.fates)
        for place, _ in batch.group:
            if place.id in outcome.kept:
                self._take_in(result, place, outcome)
        self.progress(batch.samples)
        if batch.last:
            with self.stages.timed("wait_for_disk"):
                while len(writing) >= SHARDS_AHEAD or (writing and writing[0].done()):
                    writing.popleft().result()
            writing.append(writers.submit(self.deliver, result))

    def _take_in(self, result: ShardResult, place: Place, outcome: Outcome) -> None:
        said = describe(result.task.utterances[place.id], self.ground.root)
        record = record_of(place, outcome.fates.hashes[place.id], self.encoder.sample_rate, said)
        for name, (values, affine, noise) in outcome.kept[place.id].items():
            row = place.row % self.ground.attributes.shard_frames
            result.items.setdefault(name, {})[place.id] = ShardItem(place.id, row, values, record, affine)
            if noise is not None:
                result.noise.setdefault(name, []).append(noise)
