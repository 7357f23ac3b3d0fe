"""The stages of a run, overlapping through bounded queues: decode -> encode -> keep -> write.

Decoding runs ahead in threads (soundfile releases the GIL), the encoder runs in the calling thread, a thread brings
features into their stored form, another writes shards. What is in a shard, and which utterances of it share a batch, is a
function of its places and the batch limit alone.
"""

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from encodeonce.extract.audio import AudioError, read_audio
from encodeonce.extract.batching import batches
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.encode import BatchEncoder, NotStorableError, keep
from encodeonce.extract.encoders.base import Encoder
from encodeonce.extract.tasks import ShardResult, ShardTask
from encodeonce.store.format import ShardItem
from encodeonce.store.identity import audio_hash
from encodeonce.store.plan import Place

DECODE_AHEAD_SECONDS = 600.0
SHARD_MEMORY_BYTES = 1 << 30
SHARDS_AHEAD = 2


@dataclass
class Stages:
    """Where the time goes: seconds of work of each stage (decode, keep and write overlap the encoder)."""

    decode: float = 0.0
    encode: float = 0.0
    wait_for_audio: float = 0.0
    keep: float = 0.0
    write: float = 0.0
    wait_for_disk: float = 0.0
    load: float = 0.0


Copier = Callable[[str, ShardTask], Mapping[str, tuple[np.ndarray, np.ndarray | None]] | None]
"""(audio hash, task) -> the stored values and affine of every output of the task, where the same audio is in another split."""


class Pipeline:
    """Runs shard tasks through the stages and hands each finished shard to `commit`, in order, in one thread."""

    def __init__(
        self,
        encoder: Encoder,
        load: Callable[[], BatchEncoder],
        batch_samples: int,
        mixes_lengths: bool,
        decoders: int,
        shard_frames: int,
        record: Callable[[Place, Utterance, str], dict],
        copy: Copier,
        commit: Callable[[ShardResult], None],
        progress: Callable[[float], None],
    ) -> None:
        self.encoder, self.load = encoder, load
        self.batch_samples, self.mixes_lengths, self.decoders = batch_samples, mixes_lengths, decoders
        self.shard_frames = shard_frames
        self.record, self.copy, self.commit, self.progress = record, copy, commit, progress
        self.stages = Stages()
        self.batch_encoder: BatchEncoder | None = None
        self.started: float | None = None
        self._clock = Lock()

    def run(self, tasks: Iterable[ShardTask]) -> None:
        """Make every shard. The first error of any stage ends the run; shards committed before it stand."""
        with (
            ThreadPoolExecutor(self.decoders, "decode") as decoders,
            ThreadPoolExecutor(1, "keep") as keeper,
            ThreadPoolExecutor(1, "write") as writer,
            tempfile.TemporaryDirectory(prefix="encodeonce-") as spool,
        ):
            writing: deque[Future[None]] = deque()
            batch_queue = self._decoded(decoders, tasks)
            keeping: deque[Future[None]] = deque()
            try:
                for task, result, group, last in batch_queue:
                    self._encode(result, group, keeper, keeping, Path(spool))
                    self.progress(sum(place.samples for place, _ in group) / self.encoder.sample_rate)
                    if last:
                        while keeping:
                            keeping.popleft().result()
                        with self._timed("wait_for_disk"):
                            while len(writing) >= SHARDS_AHEAD or (writing and writing[0].done()):
                                writing.popleft().result()
                        writing.append(writer.submit(self._write, result))
                while writing:
                    writing.popleft().result()
            except BaseException:
                for executor in (decoders, keeper, writer):
                    executor.shutdown(wait=False, cancel_futures=True)
                raise

    def _decoded(
        self, decoders: ThreadPoolExecutor, tasks: Iterable[ShardTask]
    ) -> Iterator[tuple[ShardTask, ShardResult, list[tuple[Place, Future]], bool]]:
        """The batches of all shards in turn, their audio being decoded some way ahead."""
        ahead: deque[tuple[ShardTask, ShardResult, list[tuple[Place, Future]], bool]] = deque()
        seconds = 0.0
        for task in tasks:
            result = ShardResult(task)
            grouped = batches([p.samples for p in task.places], self.batch_samples, self.mixes_lengths)
            for number, positions in enumerate(grouped):
                places = [task.places[i] for i in positions]
                group = [(place, decoders.submit(self._decode, task, place)) for place in places]
                ahead.append((task, result, group, number == len(grouped) - 1))
                seconds += sum(place.samples for place in places) / self.encoder.sample_rate
                while seconds > DECODE_AHEAD_SECONDS and len(ahead) > 1:
                    batch = ahead.popleft()
                    seconds -= sum(place.samples for place, _ in batch[2]) / self.encoder.sample_rate
                    yield batch
        yield from ahead

    def _decode(self, task: ShardTask, place: Place) -> tuple[str, np.ndarray]:
        if self.started is None:
            self.started = time.perf_counter()
        with self._timed("decode"):
            utterance = task.utterances.get(place.id)
            if utterance is None:
                raise AudioError("it was planned, but is not in the corpus any more")
            samples = read_audio(utterance, self.encoder.sample_rate)
            digest = audio_hash(samples)
            expected = task.expected_hashes.get(place.id)
            if expected not in (None, digest) or len(samples) != place.samples:
                raise AudioError(f"{utterance.audio} changed since its place was planned; run again with --replace")
            return digest, self.encoder.prepare(samples)

    def _encode(
        self,
        result: ShardResult,
        group: Sequence[tuple[Place, Future]],
        keeper: ThreadPoolExecutor,
        keeping: deque[Future[None]],
        spool: Path,
    ) -> None:
        places, audio = [], []
        for place, future in group:
            try:
                with self._timed("wait_for_audio"):
                    digest, samples = future.result()
            except AudioError as error:
                result.failed[place.id] = str(error)
                continue
            result.hashes[place.id] = digest
            stored = self.copy(digest, result.task)
            if stored is not None:
                result.copied.add(place.id)
                keeping.append(keeper.submit(self._keep_copy, result, place, stored))
            else:
                places.append(place)
                audio.append(samples)
        if not audio:
            return
        if self.batch_encoder is None:
            with self._timed("load"):
                self.batch_encoder = self.load()
        with self._timed("encode"):
            features = self.batch_encoder.encode(audio)
        for place, outputs in zip(places, features, strict=True):
            keeping.append(keeper.submit(self._keep, result, place, outputs, spool))
        while keeping and (keeping[0].done() or len(keeping) > 64):
            keeping.popleft().result()

    def _keep(self, result: ShardResult, place: Place, outputs: Mapping[str, np.ndarray], spool: Path) -> None:
        with self._timed("keep"):
            try:
                kept = {output.name: keep(outputs[output.what], output) for output in result.task.outputs}
            except NotStorableError as error:
                result.failed[place.id] = str(error)
                return
            for name, (values, affine, noise) in kept.items():
                self._place(result, place, name, self._spooled(result, values, spool), affine)
                result.noise.setdefault(name, []).append(noise)

    def _keep_copy(
        self, result: ShardResult, place: Place, stored: Mapping[str, tuple[np.ndarray, np.ndarray | None]]
    ) -> None:
        for name, (values, affine) in stored.items():
            self._place(result, place, name, values, affine)

    def _place(
        self, result: ShardResult, place: Place, output: str, values: np.ndarray, affine: np.ndarray | None
    ) -> None:
        record = self.record(place, result.task.utterances[place.id], result.hashes[place.id])
        item = ShardItem(place.id, place.row % self.shard_frames, values, record, affine)
        result.items.setdefault(output, {})[place.id] = item

    @staticmethod
    def _spooled(result: ShardResult, values: np.ndarray, spool: Path) -> np.ndarray:
        """The values themselves, or where a shard's outputs are large a copy on disk that looks the same."""
        frames = sum(place.frames for place in result.task.places)
        row_bytes = sum(output.width * np.dtype(output.dtype).itemsize for output in result.task.outputs)
        if frames * row_bytes <= SHARD_MEMORY_BYTES:
            return values
        with tempfile.NamedTemporaryFile(dir=spool) as file:
            mapped = np.memmap(file, values.dtype, "w+", shape=values.shape)
        mapped[:] = values
        return mapped

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
