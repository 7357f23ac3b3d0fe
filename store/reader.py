"""FeatureStore: open a split, and read utterances straight from the mapped shards."""

import difflib
import json
import mmap
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from encodeonce.store.errors import DamagedError, StoreError
from encodeonce.store.format import ABSENT, chunk_frames, read_index
from encodeonce.store.layout import (
    SET_FILE,
    FeatureSet,
    Output,
    SplitPaths,
    feature_sets,
    published_outputs,
    read_attributes,
    read_feature_set,
)
from encodeonce.store.quantize import restore
from encodeonce.store.table import TRANSLATION, read_table

OPEN_SHARDS = 128


class FeatureStore:
    """One split of a feature set, open for reading.

    Args:
        path: a split's folder, a feature set's, or a store's.
        encoder: which feature set of a store: the encoder's name, or the folder's name where there are several.
        split: which split of a feature set.
        output: the output that `utterance.features` gives; by default the deepest layer, in float16 where there is one.

    Raises:
        StoreError: nothing there, or more than one thing; the message lists what there is.
    """

    def __init__(
        self, path: str | Path, encoder: str | None = None, split: str | None = None, output: str | None = None
    ) -> None:
        self.path = find_split(Path(path), encoder, split)
        self._paths = SplitPaths(self.path)
        self._attributes = read_attributes(self._paths.group)
        self._outputs = published_outputs(self._paths)
        if not self._outputs:
            raise StoreError(f"{self.path} has no finished output yet; run extract-features again to finish it")
        self.table: pa.Table = read_table(self._paths.table)
        self.output = self._default_output() if output is None else self._output(output).name
        self._lock = Lock()
        self._maps: OrderedDict[tuple[str, int], tuple[mmap.mmap, np.ndarray]] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the mapped shards; arrays that are still held keep theirs."""
        self._maps.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def __len__(self) -> int:
        return self.table.num_rows

    def __repr__(self) -> str:
        outputs = ", ".join(f"{o.name} [{o.width}] {o.dtype}" for o in self._outputs.values())
        return (
            f"FeatureStore({str(self.path)!r}: {len(self)} utterances, {outputs}, {self.frame_rate:g} frames a second)"
        )

    @property
    def encoder(self) -> str:
        """The name of the encoder that made the features."""
        return self._attributes.encoder

    @property
    def fingerprint(self) -> str:
        """What the features are, as 64 hex digits: equal fingerprints mean equal encoders, used in the same way."""
        return self._attributes.fingerprint

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return list(self._outputs)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self._attributes.frame_rate

    @property
    def sample_rate(self) -> int:
        """Samples a second of the audio that the encoder saw."""
        return self._attributes.sample_rate

    @cached_property
    def ids(self) -> list[str]:
        """The utterance ids, in the order of the rows."""
        return self.table["id"].to_pylist()

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.ids)}

    def __contains__(self, utterance_id: object) -> bool:
        return utterance_id in self._row_of

    def __iter__(self) -> "Iterator[StoredUtterance]":
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: str | int) -> "StoredUtterance":
        if isinstance(key, str):
            if key not in self._row_of:
                close = difflib.get_close_matches(key, self.ids, 3)
                hint = f"; close to it: {', '.join(close)}" if close else ""
                raise KeyError(f"no utterance {key!r} among the {len(self)} of {self.path}{hint}")
            key = self._row_of[key]
        if not -len(self) <= key < len(self):
            raise IndexError(f"utterance {key} of {len(self)} in {self.path}")
        return StoredUtterance(self, self.table.slice(key % len(self), 1).to_pylist()[0])

    def read(self, row: int, frames: int, output: str | None = None) -> np.ndarray:
        """`frames` stored frames from global row `row` of an utterance's start, `[frames, D]`.

        Zero-copy and read-only for float and integer outputs; int8 comes back restored, as float32.
        """
        spec = self._output(output or self.output)
        values = self._view(spec, row, frames)
        return values if spec.dtype != "int8" else restore(values, self.affine(row, spec.name))

    def affine(self, row: int, output: str | None = None) -> np.ndarray:
        """Scale and offset `[2, D]` float32 of the int8 utterance that starts at a row."""
        spec = self._output(output or self.output)
        if spec.dtype != "int8":
            raise StoreError(f"{spec.name} is {spec.dtype}, not int8: it has no scales")
        shard, inside = divmod(row, self._attributes.shard_frames)
        mapped, index = self._shard(spec, shard, affine=True)
        offset, size = index[inside // chunk_frames(spec.width)].tolist()
        self._check_range(offset, size, len(mapped), self._paths.affine_shard(spec.name, shard))
        return np.frombuffer(mapped, "<f4", 2 * spec.width, offset).reshape(2, spec.width)

    def quantized(self, row: int, frames: int, output: str | None = None) -> np.ndarray:
        """The values as they are stored, `[frames, D]`, zero-copy: int8 without its scales."""
        return self._view(self._output(output or self.output), row, frames)

    def _view(self, spec: Output, row: int, frames: int) -> np.ndarray:
        shard, inside = divmod(row, self._attributes.shard_frames)
        mapped, index = self._shard(spec, shard)
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        offset = index[inside // chunk_frames(spec.width), 0].item()
        self._check_range(
            offset, frames * spec.width * dtype.itemsize, len(mapped), self._paths.shard(spec.name, shard)
        )
        return np.frombuffer(mapped, dtype, frames * spec.width, offset).reshape(frames, spec.width)

    @staticmethod
    def _check_range(offset: int, size: int, length: int, path: Path) -> None:
        if offset == ABSENT or offset + size > length:
            where = "absent" if offset == ABSENT else f"bytes {offset} to {offset + size} of {length}"
            raise DamagedError(
                f"{path} does not hold the frames that its table promises ({where}); run feature-store verify"
            )

    def _shard(self, spec: Output, shard: int, affine: bool = False) -> tuple[mmap.mmap, np.ndarray]:
        with self._lock:
            return self._map(spec, shard, affine)

    def _map(self, spec: Output, shard: int, affine: bool) -> tuple[mmap.mmap, np.ndarray]:
        key = (f"{spec.name}-affine" if affine else spec.name, shard)
        if key in self._maps:
            self._maps.move_to_end(key)
            return self._maps[key]
        path = (self._paths.affine_shard if affine else self._paths.shard)(spec.name, shard)
        try:
            with open(path, "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DamagedError(f"{path} cannot be read: {error}; run feature-store verify") from error
        index = read_index(memoryview(mapped), self._attributes.shard_frames, spec.width, str(path))
        self._maps[key] = mapped, index
        if len(self._maps) > OPEN_SHARDS:
            self._maps.popitem(last=False)
        return mapped, index

    def _output(self, name: str) -> Output:
        if name not in self._outputs:
            raise StoreError(f"no output {name!r} in {self.path}; there are {', '.join(self._outputs)}")
        return self._outputs[name]

    def _default_output(self) -> str:
        preference = {"int8": 0, "float32": 1}

        def rank(output: Output) -> tuple[bool, str, int]:
            base = output.name.removesuffix(f"-{output.dtype}")
            return output.name.startswith("layer-"), base, preference.get(output.dtype, 2)

        return max(self._outputs.values(), key=rank).name


@dataclass(frozen=True, slots=True)
class StoredUtterance:
    """One utterance of a store; features are read when asked for."""

    store: FeatureStore
    record: dict[str, Any]

    @property
    def id(self) -> str:
        """Its id."""
        return self.record["id"]

    @property
    def frames(self) -> int:
        """How many frames T it has."""
        return self.record["frames"]

    @property
    def duration(self) -> float:
        """Its length in seconds."""
        return self.record["duration"]

    @property
    def text(self) -> str | None:
        """Its transcript, where there is one."""
        return self.record["text"]

    @property
    def speaker(self) -> str | None:
        """Who speaks, where that is known."""
        return self.record["speaker"]

    @property
    def language(self) -> str | None:
        """What language it is in, where that is known."""
        return self.record["language"]

    @property
    def translations(self) -> dict[str, str]:
        """Texts in other languages, by language."""
        pairs = ((k.removeprefix(TRANSLATION), v) for k, v in self.record.items() if k.startswith(TRANSLATION))
        return {language: text for language, text in pairs if text is not None}

    @property
    def metadata(self) -> dict[str, Any]:
        """Every other column of the corpus."""
        return json.loads(self.record["metadata"] or "{}")

    @property
    def features(self) -> np.ndarray:
        """The store's default output, `[T, D]`; see `FeatureStore.read`."""
        return self.store.read(self.record["row"], self.frames)

    def __getitem__(self, output: str) -> np.ndarray:
        return self.store.read(self.record["row"], self.frames, output)


def find_split(path: Path, encoder: str | None = None, split: str | None = None) -> Path:
    """The folder of a split, given by itself, by its feature set, or by its store."""
    if (path / "features.zarr").is_dir():
        return path
    if (path / SET_FILE).is_file():
        found = read_feature_set(path)
    elif path.is_dir():
        found = find_set(path, encoder)
    else:
        raise StoreError(f"{path} is no folder; give a store, a feature set or a split")
    splits = {folder.relative_to(found.path).as_posix(): folder for folder in found.splits()}
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split not in splits:
        problem = f"no split {split!r}" if split else "several splits, and none was named"
        raise StoreError(f"{found.path} has {problem}; there are: {', '.join(splits) or 'none'}")
    return splits[split]


def find_set(store: Path, encoder: str | None) -> FeatureSet:
    """The feature set of an encoder in a store, by the encoder's or the folder's name."""
    sets = list(feature_sets(store))
    names = ", ".join(found.path.name for found in sets) or "none"
    if not sets:
        raise StoreError(f"{store} holds no feature set; extract-features --store {store} makes one")
    matching = [found for found in sets if encoder in (None, found.encoder, found.path.name)]
    if not matching:
        raise StoreError(f"{store} has no feature set of {encoder!r}; there are: {names}")
    if len(matching) > 1:
        both = ", ".join(found.path.name for found in matching)
        raise StoreError(f"{store} has several feature sets that fit ({both}); name one of them by its folder")
    return matching[0]
