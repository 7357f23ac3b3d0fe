"""What a stream is about: which utterances, from which outputs of which stores."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from encodeonce.store.errors import StoreError
from encodeonce.store.layout import Output
from encodeonce.store.reader import FeatureStore
from encodeonce.store.split import Split
from encodeonce.store.streaming.ring import Ring
from encodeonce.store.streaming.where import matching

SAME_SECONDS = 0.1
"""Utterances of one id whose durations differ by more, and by more than a frame, are not the same audio."""


@dataclass(frozen=True)
class Source:
    """One output of a stream. `indices` `[N]` are the positions in its store of the stream's utterances."""

    name: str
    store: FeatureStore
    spec: Output
    indices: np.ndarray
    ring: Ring = field(repr=False)

    @property
    def frames(self) -> np.ndarray:
        """Frames of the utterances, `[N]`."""
        return self.store.frames[self.indices]

    def by_shard(self) -> list[tuple[Split, int, np.ndarray]]:
        """Every shard that holds some of the utterances: its split, its number, and which of the N they are."""
        found = []
        for part, positions, some in self.store.by_part(self.indices):
            shards = part.shards[some]
            order = np.argsort(shards, kind="stable")
            numbers, starts = np.unique(shards[order], return_index=True)
            groups = np.split(positions[order], starts[1:])
            found += [(part, number, group) for number, group in zip(numbers.tolist(), groups, strict=True)]
        return found

    def shard_keys(self) -> np.ndarray:
        """A number for the shard of each utterance, `[N]`."""
        keys = np.empty(len(self.indices), np.int64)
        for number, (_, _, group) in enumerate(self.by_shard()):
            keys[group] = number
        return keys


def select(
    store: FeatureStore, where: str | pc.Expression | None, min_frames: int | None, max_frames: int | None
) -> np.ndarray:
    """Positions of the utterances that a condition and the limits leave, int64.

    Raises:
        StoreError: none is left.
    """
    kept = np.ones(len(store), bool)
    if where is not None:
        kept[:] = False
        kept[matching(store, where)] = True
    if min_frames is not None:
        kept &= store.frames >= min_frames
    if max_frames is not None:
        kept &= store.frames <= max_frames
    if not kept.any():
        limits = {"where": where, "min_frames": min_frames, "max_frames": max_frames}
        given = ", ".join(f"{name}={value!s}" for name, value in limits.items() if value is not None)
        raise StoreError(
            f"nothing of the {len(store)} utterances of {store.path} is left to stream{given and f' with {given}'}"
        )
    return np.flatnonzero(kept)


def join(
    store: FeatureStore, chosen: np.ndarray, beside: Mapping[str, FeatureStore], drop_missing: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Positions of the chosen utterances in other stores, by id; those that a store lacks are an error, or dropped.

    Raises:
        StoreError: utterances are missing, or are of other lengths than in the first store.
    """
    at = {name: _positions(store, chosen, other) for name, other in beside.items()}
    for name, positions in at.items():
        if (lacking := positions < 0).any() and not drop_missing:
            raise StoreError(
                f"{int(lacking.sum())} of {len(chosen)} utterances are not in {name!r} ({beside[name].path}), e.g. "
                f"{store.id(int(chosen[lacking.argmax()]))!r}; encode them there too, or take missing='drop'"
            )
    kept = np.all([positions >= 0 for positions in at.values()] or [np.ones(len(chosen), bool)], axis=0)
    if not kept.any():
        raise StoreError(
            f"no utterance of {store.path} is in all of {', '.join(beside)}: their ids have nothing in common"
        )
    chosen, at = chosen[kept], {name: positions[kept] for name, positions in at.items()}
    for name, positions in at.items():
        ours, theirs = (s.columns(["duration"])["duration"].to_numpy() for s in (store, beside[name]))
        apart = np.abs(ours[chosen] - theirs[positions])
        if apart.max() > max(SAME_SECONDS, 1.01 / store.frame_rate, 1.01 / beside[name].frame_rate):
            worst = int(apart.argmax())
            raise StoreError(
                f"utterance {store.id(int(chosen[worst]))!r} is not the same audio in {store.path} "
                f"({ours[chosen[worst]]:.2f} s) and in {beside[name].path} ({theirs[positions[worst]]:.2f} s)"
            )
    return chosen, at


def _positions(store: FeatureStore, chosen: np.ndarray, other: FeatureStore) -> np.ndarray:
    """Where the chosen utterances of a store are in another one; -1 where they are not."""
    ids = store.columns(["id"])["id"].take(pa.array(chosen))
    found = pc.call_function(
        "index_in", [ids], pc.SetLookupOptions(value_set=other.columns(["id"])["id"].combine_chunks())
    )
    return pc.fill_null(found, -1).to_numpy().astype(np.int64)


def contents_hash(sources: Sequence[Source], lengths: np.ndarray, shards: np.ndarray | None) -> str:
    """sha256 of what a stream is about: the features' fingerprints and outputs, the utterances' ids, audio and lengths."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(
            f"{source.store.fingerprint} {source.spec.name} {source.spec.what} {source.spec.dtype}\n".encode()
        )
    for source in sources:
        rows = source.store.columns(["id", "audio_sha256"]).take(pa.array(source.indices))
        for column in rows.columns:
            digest.update("\n".join(column.to_pylist()).encode())
    digest.update(lengths.astype("<i8").tobytes())
    if shards is not None:
        digest.update(shards.astype("<i8").tobytes())
    return digest.hexdigest()
