"""Which utterances are trained on and validated with, and what is to be said in each: a function of the tables and the seed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from encodeonce.store.objects import store_path
from encodeonce.store.reader import FeatureStore
from encodeonce.store.streaming.where import matching
from encodeonce.store.table import TRANSLATION
from encodeonce.train.checks import has_dev
from encodeonce.train.config import DataConfig, TrainConfig
from encodeonce.train.configure import near
from encodeonce.train.errors import TrainingError
from encodeonce.train.probe.subset import shuffled

NAMED = 3
"""Utterances that are named where some are left out."""


@dataclass(frozen=True)
class LeftOut:
    """Utterances that are not used, for one reason."""

    why: str
    count: int
    some: Sequence[str]

    def __str__(self) -> str:
        return f"{self.count:,} {self.why} ({', '.join(self.some)}{', ...' if self.count > len(self.some) else ''})"


@dataclass(frozen=True)
class Part:
    """Utterances of a store, each with what is to be said in it.

    Args:
        store: the splits it is from, as one.
        positions: in the store, `[N]` int64.
        texts: `[N]`.
        left_out: what is not in it, of what its condition chooses.
    """

    store: FeatureStore
    positions: np.ndarray
    texts: Sequence[str]
    left_out: Sequence[LeftOut] = field(default=())

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def frames(self) -> np.ndarray:
        """Frames of each utterance, `[N]`."""
        return self.store.frames[self.positions]

    @property
    def ids(self) -> list[str]:
        """Of each utterance, `[N]`."""
        return self.store.columns(["id"])["id"].take(pa.array(self.positions)).to_pylist()

    @property
    def hours(self) -> float:
        """Of audio."""
        return float(self.frames.sum()) / self.store.frame_rate / 3600

    def only(self, kept: np.ndarray, why: str) -> "Part":
        """Those that `kept` `[N]` says; the others are counted, and a few of them named."""
        if kept.all():
            return self
        texts = [text for text, keep in zip(self.texts, kept.tolist(), strict=True) if keep]
        gone = self.positions[~kept]
        some = [self.store.id(int(position)) for position in gone[:NAMED]]
        return Part(self.store, self.positions[kept], texts, [*self.left_out, LeftOut(why, len(gone), some)])


@dataclass(frozen=True)
class Corpus:
    """What a training learns from and, where something is held out, what it is validated with."""

    train: Part
    dev: Part | None
    outputs: Sequence[str]
    """Of the stores, in the order in which batches hold them."""


def open_corpus(config: TrainConfig) -> Corpus:
    """Open the splits of a configuration and choose utterances and texts.

    What is in the dev set is never trained on, whichever split it is from.

    Raises:
        TrainingError: nothing is left to train on, or the dev set's features are of another kind.
        StoreError: no such store, split, output or column.
    """
    data = config.data
    store = open_splits(data, data.train)
    outputs = [store.spec(name).name for name in data.outputs or (store.output,)]
    dev = None
    if has_dev(config):
        held = open_splits(data, data.dev) if data.dev else store
        for name in outputs:
            held.spec(name)  # refuses one that the dev set lacks
        dev = _without_text(_part(held, data, data.dev_where), data)
    train = _part(store, data, data.train_where)
    if dev is not None:
        train = train.only(~np.isin(_ids(train), _ids(dev)), "are in the dev set")
    train = _limit(_short_enough(_without_text(train, data), data), data, config.seed)
    for name, part in (("train on", train), ("validate with", dev)):
        if part is not None and len(part) == 0:
            left = ", ".join(map(str, part.left_out)) or "the splits are empty"
            raise TrainingError(
                f"nothing is left of the {len(part.store):,} utterances of {part.store.path} to {name}: {left}"
            )
    return Corpus(train, dev, outputs)


def open_splits(data: DataConfig, splits: Sequence[str]) -> FeatureStore:
    """Splits of the store as one; where none is named, the one that the store is."""
    path = store_path(data.store)
    return FeatureStore.concat([FeatureStore(path, data.encoder, split) for split in splits or (None,)])


def _part(store: FeatureStore, data: DataConfig, where: str | None) -> Part:
    positions = np.arange(len(store)) if where is None else matching(store, where)
    said = targets(store, data.target)
    return Part(store, positions, [cleaned(said[position], data.lower) for position in positions.tolist()])


def cleaned(text: str | None, lower: bool) -> str:
    """A text as it is trained on: runs of white space are one space; empty where there is none."""
    joined = " ".join((text or "").split())
    return joined.lower() if lower else joined


def targets(store: FeatureStore, target: str) -> list[str | None]:
    """What is to be said in each utterance of a store, `[N]`; nothing where the table has nothing.

    Raises:
        TrainingError: the store has no such text.
    """
    kind, colon, key = target.partition(":")
    if kind == "metadata" and colon:
        records = (json.loads(text or "{}") for text in store.columns(["metadata"])["metadata"].to_pylist())
        values = [record.get(key) for record in records]
        if all(value is None for value in values):
            raise TrainingError(
                f"data.target={target}: no utterance of {store.path} has metadata {key!r}{_keys(store, key)}"
            )
    else:
        column = TRANSLATION + key if colon else target
        if column not in store.column_names:
            there = [name.replace(TRANSLATION, "translation:") for name in store.column_names]
            raise TrainingError(
                f"data.target={target}: {store.path} has no such column{near(target, there)}; there are {', '.join(there)}"
            )
        values = store.columns([column])[column].to_pylist()
    return [_said(value, target) for value in values]


def _keys(store: FeatureStore, key: str) -> str:
    known = dict.fromkeys(
        key for text in store.columns(["metadata"])["metadata"].to_pylist() for key in json.loads(text or "{}")
    )
    return f"{near(key, known)}; there are {', '.join(list(known)[:20]) or 'none'}"


def _said(value: Any, target: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return str(value)
    if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
        return " ".join(value)
    raise TrainingError(
        f"data.target={target}: {str(value)[:60]!r} is no text; take a column of texts, numbers, or lists of texts"
    )


def _ids(part: Part) -> np.ndarray:
    return np.array(part.ids, dtype=np.dtypes.StringDType())


def _without_text(part: Part, data: DataConfig) -> Part:
    kept, what = np.array([bool(text) for text in part.texts], bool), data.target.replace(":", " ")
    if len(kept) and not kept.any():
        raise TrainingError(
            f"none of the {len(kept):,} utterances of {part.store.path} has a {what}: give another data.target, or a split whose "
            f"corpus has transcripts (extract-features adds them to a store once the corpus has them, without encoding again)"
        )
    return part.only(kept, f"have no {what}")


def _short_enough(part: Part, data: DataConfig) -> Part:
    seconds = part.frames / part.store.frame_rate
    if data.max_seconds is not None:
        part = part.only(seconds <= data.max_seconds, f"are longer than data.max_seconds={data.max_seconds:g}")
    return part.only(
        part.frames <= data.frames_per_batch, f"are longer than data.frames_per_batch={data.frames_per_batch:,}"
    )


def _limit(part: Part, data: DataConfig, seed: int) -> Part:
    if data.limit is None or len(part) <= data.limit:
        return part
    ids = part.ids
    taken = set(shuffled(ids, seed)[: data.limit])
    return part.only(np.array([name in taken for name in ids], bool), f"are beyond data.limit={data.limit:,}")
