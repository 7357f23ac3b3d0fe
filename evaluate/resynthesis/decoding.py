"""From what a store holds of an utterance back to audio: which output, which of its quantizers, by which codec."""

import re
from dataclasses import dataclass

import numpy as np
from encodeonce.evaluate.errors import EvaluationError
from encodeonce.extract.cache import FileCache
from encodeonce.extract.encoders.base import EncoderError, Quantizers
from encodeonce.extract.encoders.codec import Codec, LoadedCodec
from encodeonce.extract.encoders.registry import find_encoder
from encodeonce.store.identity import describe_difference, differences
from encodeonce.store.layout import FeatureSet, Output
from encodeonce.store.reader import FeatureStore
from encodeonce.store.utterance import StoredUtterance

DTYPES = ("int8", "float16", "float32")
"""Of latents, the better ones last."""
MOST_NAMED = 3
"""Differences of two codecs."""
IDENTITY = ("encoder", "weights")
"""Fields of an identity that tell one codec from another."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An output that a codec decodes, the quantizers it holds, and those of them that are decoded."""

    output: Output
    held: Quantizers
    wanted: Quantizers

    @property
    def said(self) -> str:
        """In words: `codes-1-7, quantizers 1-3`."""
        return f"{self.output.name}, quantizers {self.wanted.first}-{self.wanted.last}"


def choose_output(store: FeatureStore, output: str | None, quantizers: tuple[int, int] | None) -> Choice:
    """The output to decode: the one named, else that of most quantizers, codes rather than latents.

    Args:
        quantizers: the first and the last to decode, as the codec numbers them; None: all that the output holds.

    Raises:
        EvaluationError: no output holds codes or latents of a codec, or not those quantizers.
        StoreError: no output of that name.
    """
    held = {name: found for name in store.outputs if (found := _quantizers(store.spec(name))) is not None}
    best = max(held, key=lambda name: _rank(held[name], store.spec(name).dtype), default="")
    name = best if output is None else store.spec(output).name
    if name not in held:
        there = ", ".join(f"{other} ({store.spec(other).what})" for other in store.outputs)
        what = f"{name} of {store.path} does not hold" if name else f"no output of {store.path} holds"
        raise EvaluationError(
            f"{what} codes or latents of a codec; there are {there}. Make some with extract-features --encoder "
            f"speechtokenizer --outputs codes, or with another codec"
        )
    spec, has = store.spec(name), held[name]
    first, last = quantizers or (has.first, has.last)
    if not has.first <= first <= last <= has.last:
        raise EvaluationError(f"--quantizers {first}-{last}: {name} holds quantizers {has.first} to {has.last}")
    if has.kind == "latents" and (first, last) != (has.first, has.last):
        raise EvaluationError(
            f"--quantizers {first}-{last}: {name} holds the sum of quantizers {has.first} to {has.last}, which cannot be "
            f"taken apart; take an output of codes"
        )
    return Choice(spec, has, Quantizers(has.kind, first, last))


def _quantizers(output: Output) -> Quantizers | None:
    return Quantizers.of(output.what) if re.fullmatch(r"(codes|latents)\[\d+-\d+\]", output.what) else None


def _rank(held: Quantizers, dtype: str) -> tuple[int, bool, int]:
    return len(held.numbers), held.kind == "codes", DTYPES.index(dtype) if dtype in DTYPES else -1


def find_codec(word: str | None, feature_set: FeatureSet, cache: FileCache) -> Codec:
    """The codec that made a feature set: the one named, else the one that its provenance names.

    Raises:
        EvaluationError: no codec, or not the one that made it; the message says what differs.
        EncoderError: it is not on this machine and cannot be fetched, or cannot be used.
    """
    if any(field not in feature_set.identity for field in IDENTITY):
        raise EvaluationError(
            f"{feature_set.path} does not say which codec its codes are of: it was derived from another feature set, or "
            f"written by other code; take one that extract-features made"
        )
    try:
        codec = find_encoder(word or str(feature_set.provenance.get("source") or feature_set.encoder), cache)
    except EncoderError as error:
        if word is not None:
            raise
        raise EvaluationError(
            f"the codec of {feature_set.path} is not found by its name: {error}; give its folder with --codec"
        ) from error
    if not isinstance(codec, Codec):
        raise EvaluationError(
            f"{codec.name} is no codec and cannot decode; give the codec that made {feature_set.path}"
        )
    ours, theirs = ({field: one[field] for field in IDENTITY} for one in (codec.identity(), feature_set.identity))
    lines = [describe_difference(*difference) for difference in differences(ours, theirs)]
    if lines:
        some = [*lines[:MOST_NAMED], *([f"{len(lines) - MOST_NAMED} more"] if len(lines) > MOST_NAMED else [])]
        raise EvaluationError(
            f"{codec.name} is not the codec that made {feature_set.path}: {'; '.join(some)}; give that one with --codec"
        )
    return codec


def decode(codec: LoadedCodec, choice: Choice, utterance: StoredUtterance) -> np.ndarray:
    """Audio `[samples]` float32 of an utterance at the codec's `decoded_rate`, no longer than the audio that was encoded.

    The first quantizers are decoded as codes, others as the sum of their vectors.

    Raises:
        EncoderError, StoreError: the stored values are damaged, or not what they are said to be.
    """
    values = utterance[choice.output.name]
    if choice.held.kind == "latents":
        audio = codec.decode_latents(values)
    else:
        numbers = choice.wanted.numbers
        columns = [number - choice.held.first for number in numbers]
        if numbers.start == 0:
            audio = codec.decode_codes(values[:, columns])
        else:
            audio = codec.decode_latents(codec.quantizers.only(numbers).vectors(values[:, columns]))
    return audio[: utterance.record["samples"] * codec.decoded_rate // codec.sample_rate]
