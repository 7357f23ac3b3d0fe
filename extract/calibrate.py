"""How fast a run would go on this machine: for ten seconds the run's batches go through what costs time in it."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from encodeonce.extract.audio import AudioError, decode
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.encode import BatchEncoder
from encodeonce.extract.pipeline import in_threads, limit_threads
from encodeonce.extract.run import Run, cores
from encodeonce.store.layout import Output

CALIBRATION_SECONDS = 10.0
GOLDEN = 0.6180339887498949


@dataclass
class Spent:
    """Seconds of audio, and the seconds that decoding and encoding took, each in one thread."""

    audio: float = 0.0
    decode: float = 0.0
    encode: float = 0.0


def spread(count: int) -> list[int]:
    """0 to count - 1, ordered so that however many of the first are taken, they lie evenly: by the fractions of multiples
    of the golden ratio."""
    return np.argsort(np.argsort(np.arange(count) * GOLDEN % 1)).tolist()


def times_real_time(
    run: Run, outputs: Sequence[Output], groups: Sequence[Sequence[str]], utterances: Mapping[str, Utterance]
) -> float:
    """Times real time of a run on this machine, with all its devices; 0 where none of its audio can be used.

    As many threads as the run has take batches that lie evenly over it, each after one to warm up.

    Args:
        outputs: what the encoder gives.
        groups: the ids of each batch of the run.
    """
    work = run.work()
    encoder = in_threads(work.threads, lambda: run.load(outputs))
    encoders = min(work.encoders, len(groups))
    waiting = deque(groups[i] for i in spread(len(groups)))
    trial = _Trial(run, encoder, outputs, utterances)
    first = waiting[0]
    with ThreadPoolExecutor(encoders, "calibrate", limit_threads, (work.threads, work.device)) as pool:
        spent = list(pool.map(lambda _: trial.work(first, waiting), range(encoders)))
    audio = sum(thread.audio for thread in spent)
    if not audio:
        return 0.0
    more = _times_as_much(run)
    encoding = sum(thread.encode for thread in spent) / (encoders * more) / audio
    decoding = sum(thread.decode for thread in spent) / audio
    if run.find_device().startswith("cuda"):  # works while the processor, which all devices share, decodes
        processes = len(run.devices())
        return 1 / max(encoding, decoding / min(processes * run.work(processes).decoders, cores()))
    return 1 / (encoding + decoding / (work.encoders * work.threads * more))


def _times_as_much(run: Run) -> float:
    """How much more all processes of a run compute with than this one: other GPUs, or cores that it leaves idle. On a CPU
    processes share the cores, and are together as fast as one that has them all."""
    import torch

    processes = len(run.devices())
    if run.find_device() != "cpu":
        return len(set(run.devices()))
    alone, share = run.work(), run.work(processes)
    computing = min(processes * share.encoders * share.threads, torch.get_num_threads())
    return computing / (alone.encoders * alone.threads)


@dataclass(frozen=True)
class _Trial:
    run: Run
    encoder: BatchEncoder
    outputs: Sequence[Output]
    utterances: Mapping[str, Utterance]

    def work(self, first: Sequence[str], waiting: deque[Sequence[str]]) -> Spent:
        """Encode the first batch to warm up, and then, for some seconds, what is waiting."""
        self._batch(first, Spent())
        spent, until = Spent(), time.perf_counter() + CALIBRATION_SECONDS
        while time.perf_counter() < until:
            try:
                group = waiting.popleft()
            except IndexError:
                break
            self._batch(group, spent)
        return spent

    def _batch(self, group: Sequence[str], spent: Spent) -> None:
        rate, audio = self.run.encoder.sample_rate, []
        begun = time.perf_counter()
        for name in group:
            try:
                decoded = decode(self.utterances[name])
                decoded.sha256(rate)
                audio.append(self.run.encoder.prepare(decoded.at(rate)))
            except AudioError:
                continue
        ready = time.perf_counter()
        if audio:
            with self.encoder.failing_plainly(f"a batch of {len(audio)} utterances, among them {group[0]!r}"):
                pending = self.encoder.begin(audio, self.outputs)
                given = time.perf_counter()
                pending.stored()
            spent.audio += sum(map(len, audio)) / rate
            spent.decode += ready - begun
            # A run gives a batch to a device that works by itself while that is at the one before.
            alone = max(given - ready, pending.seconds())
            spent.encode += alone if pending.in_flight else time.perf_counter() - ready
