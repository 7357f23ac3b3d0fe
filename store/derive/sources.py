"""Stored outputs as sources: which splits hold them, whether their bytes are those recorded, their values."""

from collections.abc import Iterator, Sequence
from threading import Lock

import numpy as np
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.health import check_shard
from encodeonce.store.layout import FeatureSet, Output, SplitPaths, published_outputs
from encodeonce.store.objects import StorePath
from encodeonce.store.quantize import restore
from encodeonce.store.split import Split
from encodeonce.store.walk import by_shard


def source(feature_set: FeatureSet, name: str) -> Output:
    """An output of a feature set.

    Raises:
        StoreError: there is none of that name; the message lists those there are.
    """
    if name not in feature_set.outputs:
        raise StoreError(
            f"no output {name!r} in {feature_set.path}; there are {', '.join(sorted(feature_set.outputs))}"
        )
    return feature_set.outputs[name]


def need_features(output: Output, operation: str) -> None:
    """Refuse codes and units."""
    if output.dtype == "uint16":
        raise StoreError(
            f"{operation} takes features, and {output.name} holds codes ({output.what}); their numbers are names, "
            f"no quantities: take an output of features, or derive latents from the codes first"
        )


def need_codes(output: Output, operation: str) -> None:
    """Refuse features."""
    if output.dtype != "uint16":
        raise StoreError(
            f"{operation} takes codes or units, and {output.name} holds features ({output.what}, {output.dtype}); "
            f"feature-store derive units makes units of them"
        )


def holders(feature_set: FeatureSet, splits: Sequence[StorePath], names: Sequence[str]) -> list[StorePath]:
    """Those of some splits whose readers see all the outputs.

    Raises:
        StoreError: none of them; the message says what they hold.
    """
    held = {split: set(published_outputs(SplitPaths(split))) for split in splits if SplitPaths(split).table.is_file()}
    found = [split for split, outputs in held.items() if outputs >= set(names)]
    if not found:
        there = ", ".join(sorted(set().union(*held.values()))) or "nothing finished"
        whose = f"{splits[0]} does not hold" if len(splits) == 1 else f"no split of {feature_set.path} holds"
        raise StoreError(f"{whose} {', '.join(names)}; there are {there}")
    return found


StoredValues = tuple[np.ndarray, np.ndarray | None]
"""The stored values `[T, D]` of an utterance, and the affine of int8."""


def values_of(values: np.ndarray, affine: np.ndarray | None) -> np.ndarray:
    """The frames `[T, D]` that are stored, int8 restored."""
    return values if affine is None else restore(values, affine)


class SourceSplit:
    """A split to derive from. What leaves its shards, a fit or a feature set of its own, calls `check` first."""

    def __init__(self, path: StorePath, outputs: Sequence[Output]) -> None:
        self.split, self.outputs = Split(path), outputs
        self._sound: set[tuple[int, str]] = set()
        self._lock = Lock()

    def check(self, shard: int) -> None:
        """Compare every byte of a shard's sources with its record, once.

        Raises:
            DamagedError: it differs.
        """
        with self._lock:
            for output in self.outputs:
                if (shard, output.name) in self._sound:
                    continue
                for wrong in check_shard(self.split.paths, shard, output.name) or ():
                    raise DamagedError(
                        f"{wrong.path} is damaged: expected {wrong.expected}, found {wrong.found}; nothing is derived "
                        f"from it: feature-store repair {self.split.path} sets such shards aside"
                    )
                self._sound.add((shard, output.name))

    def stored(self, indices: np.ndarray) -> Iterator[tuple[StoredValues, ...]]:
        """Each source of each of some utterances, as it is stored."""
        return zip(*(self._stored(output, indices) for output in self.outputs), strict=True)

    def _stored(self, output: Output, indices: np.ndarray) -> Iterator[StoredValues]:
        views = self.split.views(output, indices)
        affines = self.split.affines(output, indices) if output.affine_name else [None] * len(views)
        return zip(views, affines, strict=True)

    def checked_frames(self) -> Iterator[np.ndarray]:
        """The frames `[T, D]` of the first source, utterance by utterance, each shard checked before."""
        for indices in by_shard(self.split):
            self.check(int(self.split.shards[indices[0]]))
            for stored in self.stored(indices):
                yield values_of(*stored[0])
