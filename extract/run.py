"""What a run of extract-features is about, for all its splits: the request, the encoder, the feature set, the device."""

import math
import os
import platform
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from encodeonce.extract.audio import MIXING, RESAMPLER
from encodeonce.extract.batching import Cutting
from encodeonce.extract.cache import FileCache
from encodeonce.extract.corpora import list_corpus
from encodeonce.extract.corpora.base import Utterance
from encodeonce.extract.encoders.base import Encoder, EncoderError, LoadedEncoder, first_line
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.extract.made import gpu, processor, versions
from encodeonce.extract.progress import Progress
from encodeonce.extract.ranks import local_rank
from encodeonce.extract.request import Request, RequestError, asked_member, check_request
from encodeonce.extract.selfcheck import SelfCheck, chooses_precision
from encodeonce.extract.stages import Work
from encodeonce.store.derive.chain import roots_of
from encodeonce.store.devices import find_devices
from encodeonce.store.format import FORMAT_VERSION
from encodeonce.store.identity import describe_difference, differences
from encodeonce.store.layout import FeatureSet, Output, SplitAttributes, feature_sets, set_folder
from encodeonce.store.objects import StorePath
from encodeonce.store.plan import aligned, shard_frames_for

if TYPE_CHECKING:
    from encodeonce.extract.encode import BatchEncoder

BATCH_SECONDS = {"cpu": 0.0, "cuda": 320.0}
"""Padded audio of a batch by kind of device. On a CPU one utterance at a time is as fast as any batch (docs/speed.md)."""

MOST_ENCODERS = 8
"""Threads that encode on a CPU: each holds the activations of a batch."""
MOST_DECODERS = 8
"""Threads of a process that decode, unless it is told how many."""
LEAST_SHARD_SECONDS = 600
"""A shard has room for at least this much audio, so that later, longer utterances fit."""


def cores() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Run:
    """A request with the encoder and the feature set that it means. Messages go to `progress`."""

    def __init__(self, request: Request, progress: Progress, cache: FileCache) -> None:
        check_request(request)
        # Absolute, since other processes may be given what is found below it.
        request = replace(request, data=request.data.absolute())
        self.request, self.progress, self.cache = request, progress, cache
        self.member = asked_member(request)
        self.workers = request.workers or min(MOST_DECODERS, cores())
        self.encoder: Encoder = find_encoder(request.encoder, cache, request.base_encoder)
        chosen = self.encoder.default_outputs if request.layers is None else request.layers
        self.outputs = {output.name: output for output in self.encoder.outputs(chosen, request.dtype)}
        self._check_cutting()
        self._devices: list[str] = []
        self._checks = SelfCheck(self)
        self.feature_set = self._feature_set()
        self._refuse_derived()

    def identity(self, precision: str) -> dict[str, Any]:
        """What the fingerprint of the feature set hashes."""
        own = self.encoder.identity()
        return {
            "format_version": FORMAT_VERSION,
            "encoder": own["encoder"],
            "weights": own["weights"],
            "preprocessing": {
                "sample_rate": self.encoder.sample_rate,
                "channels": MIXING,
                "resampling": RESAMPLER,
                "normalise": own["normalise"],
            },
            "cutting": {"rule": "whole"}
            if self.encoder.whole
            else {
                "rule": "even windows",
                "cut_seconds": self.cutting.cut_seconds,
                "context_seconds": self.cutting.context_seconds,
            },
            "precision": precision,
        }

    def _feature_set(self) -> FeatureSet:
        """The standing feature set that fits the request, or a new one that is not written yet."""
        request, store = self.request, self.request.store
        standing = list(feature_sets(store)) if store.is_dir() else []
        precisions = list(self.encoder.precisions) if request.precision == "auto" else [request.precision]
        if precisions[0] not in self.encoder.precisions:
            raise RequestError(
                f"--precision {request.precision}: {self.encoder.name} computes in {' or '.join(self.encoder.precisions)} alone"
            )
        for precision in precisions:
            identity = self.identity(precision)
            for found in standing:
                if found.identity == identity:
                    return found
        self._settle_ranks(precisions)
        identity = self.identity(self._checks.choose(precisions, list(self.outputs.values())))
        for found in standing:
            if found.encoder == self.encoder.name:
                lines = [describe_difference(*d) for d in differences(identity, found.identity)]
                self.progress.say(f"A new feature set: it differs from {found.path.name} in {'; '.join(lines)}")
        provenance = {
            "source": self.encoder.source,
            "versions": versions(),
        }
        return FeatureSet(set_folder(store, self.encoder.name, identity), self.encoder.name, identity, {}, provenance)

    def _settle_ranks(self, precisions: Sequence[str]) -> None:
        """Refuse that ranks choose a precision each for itself: on unlike machines they would begin feature sets of their own."""
        if self.member is not None and len(precisions) > 1 and chooses_precision(self.find_device()):
            raise RequestError(
                f"--precision auto with --rank: no feature set of {self.encoder.name} stands yet, and ranks on unlike machines might "
                f"choose differently; give one of --precision {', '.join(precisions)}"
            )

    def _refuse_derived(self) -> None:
        for name in self.outputs:
            standing = self.feature_set.outputs.get(name)
            if standing is not None and standing.derivation is not None:
                path, roots = self.feature_set.path, ", ".join(roots_of(self.feature_set.outputs, name))
                raise RequestError(
                    f"{name} of {path} was derived from {standing.derived_from}, not encoded; every new utterance gets it anyway: "
                    f"ask for {roots} instead, which the encoder gives, or take it away first: "
                    f"feature-store drop {shlex.quote(str(path))} --output {name}"
                )

    @property
    def cutting(self) -> Cutting:
        """How long audio is cut: as asked, in windows no longer than the encoder takes."""
        longest = self.encoder.longest_seconds or math.inf
        return Cutting(min(float(self.request.cut_seconds), longest), float(self.request.context_seconds))

    def _check_cutting(self) -> None:
        cutting, longest = self.cutting, self.encoder.longest_seconds
        if longest is not None and 2 * cutting.context_seconds > 0.9 * cutting.cut_seconds:
            raise RequestError(
                f"--context-seconds {cutting.context_seconds:g}: {self.encoder.name} takes windows of at most {longest:g} s, "
                f"of which that leaves next to nothing; take {0.45 * cutting.cut_seconds:g} or less"
            )

    @property
    def precision(self) -> str:
        """What the encoder computes in."""
        return self.feature_set.identity["precision"]

    def split_folder(self, name: str) -> StorePath:
        """Where a split lies in the store."""
        return self.feature_set.split_folder(name)

    def shard_frames(self, frames: Sequence[int]) -> int:
        """Rows of the shards of a new split, given the frames of the utterances it begins with."""
        if self.request.shard_frames is not None:
            return max(aligned(self.request.shard_frames), *map(aligned, frames))
        row_bytes = max(output.width * np.dtype(output.dtype).itemsize for output in self.outputs.values())
        return shard_frames_for(row_bytes, frames, self.encoder.frames(LEAST_SHARD_SECONDS * self.encoder.sample_rate))

    def attributes(self, name: str) -> SplitAttributes:
        """The attributes of a new split."""
        return SplitAttributes(
            fingerprint=self.feature_set.fingerprint,
            encoder=self.encoder.name,
            split=name,
            sample_rate=self.encoder.sample_rate,
            samples_per_frame=self.encoder.samples_per_frame,
            shard_frames=self.shard_frames([0]),
        )

    def write_feature_set(self, outputs: Mapping[str, Output], scratch: StorePath) -> None:
        """Write feature-set.json, where it does not list the outputs already; another run's outputs stay listed."""
        self.feature_set = self.feature_set.list_outputs(outputs, scratch)

    def devices(self) -> list[str]:
        """The devices that encode, `auto` and `all` resolved."""
        if not self._devices:
            self._devices = find_devices(self.request.device, local_rank() if self.member else None)
        return self._devices

    def find_device(self) -> str:
        """The device, or the first of several."""
        return self.devices()[0]

    def find_feature_set(self) -> None:
        """Look at the standing feature set again: another process may have written it since."""
        self.feature_set = self._feature_set()

    def batch_seconds(self) -> float:
        """Padded audio of a batch, in seconds; 0 is one utterance at a time."""
        if self.request.batch_seconds is not None:
            return self.request.batch_seconds
        return BATCH_SECONDS[self.find_device().split(":")[0]]

    def batch_samples(self) -> int:
        """Samples of a batch, padding included; 0 is one utterance at a time."""
        return int(self.batch_seconds() * self.encoder.sample_rate)

    def work(self, sharing: int = 1, alone: bool = False) -> Work:
        """How the run is spread over a process, which shares the machine with others, or its cores with other threads (`alone`).

        On a CPU a thread of the encoder computes on one core: on two cores that is as fast as two cores on one batch, it
        does not stall when another process wants a core, and the features do not depend on how many cores there are. The
        thread that feeds a GPU has one too: several would wait for each other, and for the cores that decode.
        """
        import torch

        computing = 1 if alone else max(1, torch.get_num_threads() // sharing)
        device = self.find_device()
        cuda = device.startswith("cuda")
        encoders = 1 if cuda or not self.encoder.parallel else min(computing, MOST_ENCODERS)
        threads = 1 if cuda or self.encoder.one_thread else max(1, computing // encoders)
        asked = self.request.workers
        decoders = asked // sharing if asked else min(MOST_DECODERS, cores() // sharing)
        return Work(1 if alone and not cuda else max(1, decoders), encoders, threads, device)

    def made(self, work: Work) -> dict[str, Any]:
        """With what shards are made, for their commit records."""
        return {
            "device": self.find_device(),
            "threads": work.threads,
            "batch_seconds": self.batch_seconds(),
            "machine": platform.machine(),
            "processor": processor(),
            **(gpu(work.device) if work.device.startswith("cuda") else {}),
            **versions(),
        }

    def load(self, outputs: Sequence[Output]) -> "BatchEncoder":
        """Load the encoder, ready for some outputs, and check that it computes what it should.

        Raises:
            EncoderError: it cannot be loaded, or its check fails.
        """
        import torch

        device, begun = self.find_device(), time.perf_counter()
        if self.encoder.note:
            self.progress.say(self.encoder.note)
        encoder = self.load_in(self.precision, outputs)
        self.progress.say(
            f"Loaded {self.encoder.name} on {device} in {self.precision} ({time.perf_counter() - begun:.1f} s)"
        )
        self._checks.make(encoder, outputs)
        if device.startswith("cuda"):
            torch.cuda.empty_cache()  # of the float32 that it was compared with
        return encoder

    def utterances(self) -> list[Utterance]:
        """The first split as the corpus lists it."""
        return list_corpus(self.request.data, self.request.splits[0], self.request.corpus).utterances

    def load_in(self, precision: str, outputs: Sequence[Output]) -> "BatchEncoder":
        """Load the encoder in a precision, unchecked.

        Raises:
            DeviceError: there is no room on a GPU for it, or the GPU failed.
            EncoderError: it cannot be loaded.
        """
        import torch
        from encodeonce.extract.device import use
        from encodeonce.extract.encode import BatchEncoder, DeviceError

        device = self.find_device()
        # What is called float32 is computed so, on a GPU as on a CPU, and what is summed in 16 bits is summed in float32.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

        @contextmanager
        def loading() -> Iterator[None]:
            try:
                yield
            except RuntimeError as error:  # a GPU's memory is full, as a rule
                raise (EncoderError if device == "cpu" else DeviceError)(
                    f"{self.encoder.name} cannot be loaded on {device}: {first_line(error)}; "
                    f"free its memory, or take another --device"
                ) from error

        def load(precision: str) -> LoadedEncoder:
            with loading():
                return self.encoder.load(device, precision, outputs)

        with loading():
            use(device)
            return BatchEncoder(self.encoder, load(precision), self.cutting, precision, lambda: load("float32"), device)
