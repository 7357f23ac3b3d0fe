"""Features of new audio, as the store holds them that a checkpoint was trained on; audio that is in the store is not encoded again."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.extract.audio import Decoded
from encodeonce.extract.cache import FileCache
from encodeonce.extract.copies import Copies
from encodeonce.extract.encode import BatchEncoder
from encodeonce.extract.encoders.base import Encoder, EncoderError
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.extract.progress import Progress
from encodeonce.extract.request import DTYPES, Request
from encodeonce.extract.run import Run
from encodeonce.store.derive.chain import Chain, Stored, chain_of
from encodeonce.store.derive.sources import values_of
from encodeonce.store.identity import describe_difference, differences
from encodeonce.store.layout import FeatureSet, Output, feature_sets
from encodeonce.store.objects import StorePath, name_below
from encodeonce.store.quantize import NotStorableError
from encodeonce.train.checkpoint import Fingerprints

ALL_SHARDS = 2**62
NOWHERE = Path(os.devnull) / "features"
"""A store that holds nothing: an extraction begins a feature set there, which is never written."""


@dataclass(frozen=True)
class Heard:
    """The features of an utterance.

    Attributes:
        values: `[T, D]` or `[T, K]` of each output, int8 restored, in the checkpoint's order.
        seconds: of audio.
        stored: they come from the store.
    """

    values: Sequence[np.ndarray]
    seconds: float
    stored: bool


class FeatureMaker:
    """Makes what a checkpoint reads of audio, by its own encoder, bit for bit as `extract-features` would store it.

    Args:
        trained: on what the checkpoint was.
        store: that may hold its feature set. What an output is derived with lies there alone.
        encoder: a word for the encoder where its name does not find it; None: its name.
        device: that encodes.

    Attributes:
        feature_set: that of the store which the checkpoint was trained on; None: it holds none, or there is no store.
        outputs: that the checkpoint reads, in its order.

    Raises:
        EvaluationError: an encoder that computes other features, or an output that cannot be made without the store.
        EncoderError: no such encoder here.
    """

    def __init__(
        self, trained: Fingerprints, progress: Progress, store: StorePath | None, encoder: str | None, device: str
    ) -> None:
        self._trained, self._progress, cache = trained, progress, FileCache()
        word = encoder or trained.encoder
        try:
            self.encoder: Encoder = find_encoder(word, cache)
        except EncoderError as error:
            raise EvaluationError(f"the checkpoint reads features of {trained.encoder}: {error}") from error
        self.feature_set = None if store is None else _find_set(store, trained.features)
        self._run = self._same_run(word, cache, device)
        self.outputs = [self._output(name) for name in trained.outputs]

    @property
    def frame_seconds(self) -> float:
        """From one frame to the next."""
        return self.encoder.samples_per_frame / self.encoder.sample_rate

    def of(self, decoded: Decoded, name: str) -> Heard:
        """The features of some audio.

        Raises:
            AudioError: no resampler for its rate. EvaluationError: it is too short, or its features cannot be stored (NaN).
        """
        rate = self.encoder.sample_rate
        seconds = len(decoded.samples) / decoded.rate
        if (kept := self._copied(decoded.sha256(rate))) is not None:
            return Heard(self._values(kept), seconds, True)
        samples = decoded.at(rate)
        if not self.encoder.frames(max(len(samples), self.encoder.pads_to)):
            raise EvaluationError(f"{name} is too short: {1000 * seconds:.0f} ms give no frame")
        (given,) = self._loaded.begin([self.encoder.prepare(samples)], self._chain.given).stored()
        stored: dict[str, Stored] = {}
        for name, value in given.items():
            if isinstance(value, NotStorableError):
                raise EvaluationError(f"{name}: {value}")
            stored[name] = value
        return Heard(self._values(self._chain.complete(stored)), seconds, False)

    def _values(self, stored: Mapping[str, Stored]) -> list[np.ndarray]:
        return [values_of(*stored[output.name][:2]) for output in self.outputs]

    @cached_property
    def _loaded(self) -> BatchEncoder:
        """Loaded when the first audio comes that no store holds."""
        loaded = self._run.load_in(self._run.precision, self._chain.given)
        self._progress.say(f"Loaded {self.encoder.name} on {self._run.find_device()} in {self._run.precision}")
        return loaded

    @cached_property
    def _chain(self) -> Chain:
        return chain_of(self.feature_set or self._run.feature_set, self.outputs)

    @cached_property
    def _copies(self) -> Copies | None:
        if self.feature_set is None:
            return None
        splits = {name_below(folder, self.feature_set.path): ALL_SHARDS for folder in self.feature_set.splits()}
        return Copies(self.feature_set.path, {0: splits}, self._progress)

    def _copied(self, digest: str) -> Mapping[str, Stored] | None:
        return None if self._copies is None else self._copies.find(digest, 0, self.outputs)

    def _same_run(self, word: str, cache: FileCache, device: str) -> Run:
        """An extraction that makes this feature set."""
        least: list[str] | None = None
        for request in self._requests(word, device):
            run = Run(request, self._progress, cache)
            if run.feature_set.fingerprint == self._trained.features:
                return run
            if self.feature_set is not None:
                found = [
                    describe_difference(*d) for d in differences(run.feature_set.identity, self.feature_set.identity)
                ]
                least = found if least is None or len(found) < len(least) else least
        what = f" in {'; '.join(least)}" if least else ""
        raise EvaluationError(
            f"{self.encoder.name} makes other features than those the checkpoint was trained on{what}; "
            + (
                "give the encoder that made the store by --encoder"
                if least
                else "give --store, which says how they were made"
            )
        )

    def _requests(self, word: str, device: str) -> Iterator[Request]:
        """As the feature set says; where there is none, by default, in each precision."""
        if self.feature_set is None:
            for precision in self.encoder.precisions:
                yield Request(word, (), store=NOWHERE, precision=precision, device=device)
            return
        identity = self.feature_set.identity
        if "cutting" not in identity:
            raise EvaluationError(
                f"{self.feature_set.path.name} was derived from another feature set (stack, stride or dedup), which is not done to new "
                f"audio; put it into a store with extract-features and feature-store derive, and use evaluate-adapter"
            )
        cutting = {key: value for key, value in identity["cutting"].items() if key != "rule"}
        yield Request(word, (), store=NOWHERE, precision=identity["precision"], device=device, **cutting)

    def _output(self, name: str) -> Output:
        """As the feature set describes it, or an encoder that names all of its outputs so."""
        if self.feature_set is not None and name in self.feature_set.outputs:
            return self.feature_set.outputs[name]
        for dtype in DTYPES:
            for chosen in (self.encoder.default_outputs, "all"):
                if found := {output.name: output for output in self.encoder.outputs(chosen, dtype)}.get(name):
                    return found
        raise EvaluationError(
            f"{self.encoder.name} itself gives no {name}: it was derived; give --store with the feature set that has it"
        )


def _find_set(store: StorePath, fingerprint: str) -> FeatureSet | None:
    found = feature_sets(store) if store.is_dir() else ()
    return next((one for one in found if one.fingerprint == fingerprint), None)
