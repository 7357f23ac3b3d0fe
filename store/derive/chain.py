"""Derived outputs of one utterance, computed from the stored form of what they are derived from.

`feature-store derive` computes them so, and so do extraction and FeatureWriter for utterances that come later: the bytes are the same.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from encodeonce.store.codebooks import Codebooks, read_codebooks
from encodeonce.store.derive.sources import values_of
from encodeonce.store.derive.transforms import read_transform
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.kmeans import KMeans
from encodeonce.store.layout import FeatureSet, Output
from encodeonce.store.noise import Ratio
from encodeonce.store.quantize import keep

Stored = tuple[np.ndarray, np.ndarray | None, Ratio | None]
"""The stored values `[T, D]`, the affine of int8, and the signal-to-noise ratio in dB where it is known."""
Function = Callable[[Sequence[np.ndarray]], np.ndarray]
"""The frames `[T, D]` of each source, int8 restored -> those of the output."""


@dataclass(frozen=True, slots=True)
class Chain:
    """What has to be given of an utterance, and what is derived of it, in an order that can be computed."""

    given: tuple[Output, ...]
    derived: tuple[tuple[Output, Function], ...]
    wanted: tuple[str, ...]

    def complete(self, stored: Mapping[str, Stored]) -> dict[str, Stored]:
        """The wanted outputs of an utterance, by name; `stored` holds the given ones.

        Raises:
            NotStorableError: derived values that their output cannot hold.
        """
        found = dict(stored)
        for output, function in self.derived:
            values = [values_of(*found[name][:2]) for name in sources_of(output)]
            found[output.name] = keep(function(values), output)
        return {name: found[name] for name in self.wanted}


def sources_of(output: Output) -> list[str]:
    """The names of the outputs that an output was derived from; none for what an encoder gave."""
    return output.derived_from.split(",") if output.derivation and output.derived_from else []


def roots_of(outputs: Mapping[str, Output], name: str) -> list[str]:
    """The names of what an output was derived from in the end: what an encoder gave; its own where it is that itself."""
    sources = sources_of(outputs[name]) if name in outputs else []
    return list(dict.fromkeys(root for source in sources for root in roots_of(outputs, source))) or [name]


def chain_of(feature_set: FeatureSet, wanted: Iterable[Output]) -> Chain:
    """How some outputs of a feature set come to be: those that are given, and the functions of those that are derived.

    Raises:
        StoreError: what an output is derived from, or with, is not in the feature set.
    """
    wanted = list(wanted)
    specs = {**feature_set.outputs, **{output.name: output for output in wanted}}
    order: dict[str, Output] = {}

    def visit(output: Output) -> None:
        for name in sources_of(output):
            if name not in specs:
                raise StoreError(f"{output.name} is derived from {name}, which {feature_set.path} does not have")
            visit(specs[name])
        order.setdefault(output.name, output)

    for output in wanted:
        visit(output)
    given = tuple(output for output in order.values() if output.derivation is None)
    derived = tuple((o, function_of(feature_set, o)) for o in order.values() if o.derivation is not None)
    return Chain(given, derived, tuple(output.name for output in wanted))


def function_of(feature_set: FeatureSet, output: Output) -> Function:
    """What computes a derived output, with what was fitted for it.

    Raises:
        StoreError: an operation of a newer encodeonce. MissingError, DamagedError: what was fitted is not there, or not that.
    """
    how = output.derivation or {}
    match how.get("operation"):
        case "cast":
            return lambda values: values[0]
        case "mean":
            return mean
        case "normalise":
            return partial(normalise, read_transform(feature_set, output))
        case "pca":
            return partial(project, read_transform(feature_set, output))
        case "units":
            centres = _codebooks(feature_set, output.name, output).quantizers[0].codebook
            kmeans = KMeans(centres, np.ones(len(centres), np.int64), output.what, {}, {})
            return lambda values: kmeans.assign(np.asarray(values[0]))
        case "latents":
            books = _codebooks(feature_set, sources_of(output)[0], output)
            return lambda values: books.vectors(values[0], how["columns"])
        case other:
            raise StoreError(
                f"{output.name} of {feature_set.path} is made by {other!r}, which this encodeonce does not know; upgrade it"
            )


def _codebooks(feature_set: FeatureSet, holder: str, output: Output) -> Codebooks:
    path = feature_set.codebooks(holder)
    found, recorded = read_codebooks(path), (output.derivation or {}).get("codebooks_sha256")
    if found.sha256 != recorded:
        raise DamagedError(
            f"{path}: its values have sha256 {found.sha256}, and {output.name} was made with {recorded}; copy it from another "
            f"copy of the store"
        )
    return found


def mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """The mean `[T, D]` float32 of several outputs, summed in their order."""
    total = values[0].astype(np.float32)
    for more in values[1:]:
        total += more
    total /= np.float32(len(values))
    return total


def normalise(fitted: Mapping[str, np.ndarray], values: Sequence[np.ndarray]) -> np.ndarray:
    """(x - mean) / std `[T, D]` float32; a dimension that never changes has std 1, so that it becomes 0."""
    found = values[0].astype(np.float32)
    found -= fitted["mean"]
    found /= fitted["std"]
    return found


def project(fitted: Mapping[str, np.ndarray], values: Sequence[np.ndarray]) -> np.ndarray:
    """(x - mean) components^T, `[T, K]` float32 for components `[K, D]`."""
    centred = values[0].astype(np.float32)
    centred -= fitted["mean"]
    return centred @ fitted["components"].T
