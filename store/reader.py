"""FeatureStore: open a split, or several as one, and read utterances straight from the shards."""

import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from encodeonce.store.cache import ShardCache, cache_folder
from encodeonce.store.errors import StoreError
from encodeonce.store.find import find_split
from encodeonce.store.ids import IdIndex
from encodeonce.store.layout import Output
from encodeonce.store.mixing import refuse_mixing
from encodeonce.store.objects import ObjectPath, StorePath, store_path
from encodeonce.store.padded import Padded, room_for, utterance_bytes
from encodeonce.store.split import Split
from encodeonce.store.utterance import StoredUtterance

if TYPE_CHECKING:
    import dask.array
    import xarray
    from encodeonce.store.stats import Statistics
    from encodeonce.store.streaming.stream import Stream

CACHE_BYTES = 32 << 30

Ids = Sequence[str | int] | np.ndarray


class FeatureStore:
    """A split of a feature set, or several as one (`concat`), open for reading.

    Threads may share it. It can be pickled, for worker processes, and used after a fork (of an object store: not).

    Args:
        path: a split's folder, a feature set's, or a store's; or its URL (s3://, gs://, az://, https://, memory://).
        encoder: which feature set of a store: the encoder's name, or the folder's name where there are several.
        split: which split of a feature set.
        output: the output that `utterance.features` gives; by default the deepest layer that an encoder gave, in float16 where
            there is one.
        cache: the folder where shards of an object store are kept; by default in the user's cache folder.
        cache_bytes: how large that folder may become; 0 keeps nothing and reads ranges alone.

    Raises:
        StoreError: nothing there, or more than one thing; the message lists what there is.
    """

    def __init__(
        self,
        path: str | StorePath,
        encoder: str | None = None,
        split: str | None = None,
        output: str | None = None,
        cache: str | Path | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        found = find_split(store_path(path), encoder, split)
        shard_cache = None
        if isinstance(found, ObjectPath) and cache_bytes > 0:
            shard_cache = ShardCache(Path(cache) if cache else cache_folder() / "shards", cache_bytes)
        self._hold([Split(found, shard_cache)], output)

    @classmethod
    def concat(cls, stores: "Iterable[FeatureStore]", output: str | None = None) -> Self:
        """Several splits or stores of one feature set as one, in the order given, with the outputs that all of them hold.

        Raises:
            StoreError: they are of different feature sets, or an utterance id is in two of them.
        """
        parts = [part for store in stores for part in store.parts]
        if not parts:
            raise StoreError("nothing to put together: give concat one store at least")
        for part in parts[1:]:
            refuse_mixing(parts[0], part)
        joined = cls.__new__(cls)
        joined._hold(parts, output)
        if (double := joined._index.first_double()) is not None:
            holding = [str(part.path) for part in parts if IdIndex(part.ids).find(double) is not None]
            raise StoreError(f"utterance {double!r} is there twice, in {' and '.join(holding)}; leave one of them out")
        return joined

    def _hold(self, parts: list[Split], output: str | None) -> None:
        self.parts = parts
        self._outputs = {
            name: spec for name, spec in parts[0].outputs.items() if all(p.outputs.get(name) == spec for p in parts)
        }
        self._starts = np.cumsum([0, *map(len, parts)])
        chunks = [chunk for part in parts for chunk in part.ids.chunks]
        self._ids = pa.chunked_array(chunks, pa.string())
        self._index = IdIndex(self._ids)
        self.frames: np.ndarray = np.concatenate([part.frames for part in parts])
        """Frames of each utterance, `[N]` int32."""
        if not self._outputs:
            raise StoreError(f"{' and '.join(str(part.path) for part in parts)} have no output in common")
        self.output = self._default_output() if output is None else self.spec(output).name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the open shards; arrays that are still held keep theirs."""
        for part in self.parts:
            part.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("ids", "table")}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __repr__(self) -> str:
        outputs = ", ".join(f"{o.name} [{o.width}] {o.dtype}" for o in self._outputs.values())
        places = " + ".join(str(part.path) for part in self.parts)
        return f"FeatureStore({places!r}: {len(self)} utterances, {outputs}, {self.frame_rate:g} frames a second)"

    def _repr_html_(self) -> str:
        from encodeonce.store.notebook import store_html

        # Here and below: the type checker takes this file and the installed encodeonce.store.reader for two modules.
        return store_html(self)  # pyrefly: ignore[bad-argument-type]

    @property
    def path(self) -> StorePath:
        """The split's folder; of several, the first one's."""
        return self.parts[0].path

    @property
    def encoder(self) -> str:
        """The name of the encoder that made the features."""
        return self.parts[0].attributes.encoder

    @property
    def fingerprint(self) -> str:
        """What the features are, as 64 hex digits: equal fingerprints mean equal encoders, used in the same way."""
        return self.parts[0].attributes.fingerprint

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs."""
        return list(self._outputs)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.parts[0].attributes.frame_rate

    @property
    def sample_rate(self) -> int:
        """Samples a second of the audio that the encoder saw."""
        return self.parts[0].attributes.sample_rate

    @cached_property
    def ids(self) -> list[str]:
        """The utterance ids, in the order of the rows."""
        return self._ids.to_pylist()

    @cached_property
    def table(self) -> pa.Table:
        """utterances.parquet, every column; `row` and `shard` of several splits are each one's own."""
        return pa.concat_tables([part.table for part in self.parts], promote_options="default")

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Some columns of the table, read without the others."""
        tables = [part.columns([n for n in names if n in part.column_names]) for part in self.parts]
        return pa.concat_tables(tables, promote_options="default")

    @property
    def column_names(self) -> list[str]:
        """The columns of the table."""
        return list(dict.fromkeys(name for part in self.parts for name in part.column_names))

    def spec(self, output: str | None = None) -> Output:
        """What an output is (the default one where none is named): width, dtype, what it holds.

        Raises:
            StoreError: there is none of that name; the message lists those there are.
        """
        name = self.output if output is None else output
        if name not in self._outputs:
            raise StoreError(f"no output {name!r} in {self.path}; there are {', '.join(self._outputs)}")
        return self._outputs[name]

    def id(self, index: int) -> str:
        """The id of an utterance by its position."""
        return self._ids[index].as_py()

    def index(self, utterance_id: str) -> int:
        """The position of an utterance.

        Raises:
            KeyError: it is not there; the message names ids that are close to it.
        """
        found = self._index.find(utterance_id)
        if found is None:
            close = self._index.close_to(utterance_id)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise KeyError(f"no utterance {utterance_id!r} among the {len(self)} of {self.path}{hint}")
        return found

    def indices(self, keys: Ids) -> np.ndarray:
        """Positions `[B]` int64 of utterances given by id or position."""
        positions = [self.index(key) if isinstance(key, str) else operator.index(key) for key in keys]
        for position in positions:
            if not -len(self) <= position < len(self):
                raise IndexError(f"utterance {position} of {len(self)} in {self.path}")
        return np.array(positions, np.int64) % max(1, len(self))

    def __contains__(self, utterance_id: object) -> bool:
        return isinstance(utterance_id, str) and self._index.find(utterance_id) is not None

    def __iter__(self) -> "Iterator[StoredUtterance]":
        return map(self._utterance, range(len(self)))

    def __getitem__(self, key: str | int) -> "StoredUtterance":
        return self._utterance(int(self.indices([key])[0]))

    def _utterance(self, index: int) -> "StoredUtterance":
        return StoredUtterance(self, index)  # pyrefly: ignore[bad-argument-type]

    def read(self, keys: Ids, output: str | None = None, out: np.ndarray | None = None) -> Padded:
        """A padded batch of utterances given by id or position, each copied once, straight from its shard.

        Args:
            keys: ids, or positions.
            output: which output; int8 comes restored, as float32.
            out: an array of the result's dtype whose first B * T * D values are filled, instead of a new one.
        """
        spec, indices = self.spec(output), self.indices(keys)
        lengths = self.frames[indices]
        shape = len(indices), int(lengths.max(initial=0)), spec.width
        dtype = np.dtype(np.float32 if spec.dtype == "int8" else spec.dtype)
        values = np.empty(shape, dtype) if out is None else room_for(out, shape, dtype)
        if spec.dtype == "int8":
            views, affines = self.views(indices, spec.name), self.affines(indices, spec.name)
            for i, (length, (scale, offset)) in enumerate(zip(lengths.tolist(), affines, strict=True)):
                np.multiply(views[i], scale, out=values[i, :length])
                values[i, :length] += offset
        else:
            targets = utterance_bytes(values, lengths)
            for part, positions, some in self.by_part(indices):
                part.copy_into(spec, some, [targets[i] for i in positions.tolist()])
        for i, length in enumerate(lengths.tolist()):
            values[i, length:] = 0
        return Padded(values, lengths)

    def views(self, indices: np.ndarray, output: str | None = None) -> list[np.ndarray]:
        """The values of utterances as they are stored, `[T, D]` each: read-only, uncopied where the store is local."""
        spec = self.spec(output)
        return self._gather(indices, lambda part, some: part.views(spec, some))

    def affines(self, indices: np.ndarray, output: str | None = None) -> list[np.ndarray]:
        """Scale and offset, `[2, D]` float32 each, of utterances of an int8 output."""
        spec = self.spec(output)
        return self._gather(indices, lambda part, some: part.affines(spec, some))

    def _gather(self, indices: np.ndarray, read: Any) -> list[np.ndarray]:
        if len(self.parts) == 1:
            return read(self.parts[0], indices)
        found: list[Any] = [None] * len(indices)
        for part, positions, some in self.by_part(indices):
            for position, values in zip(positions.tolist(), read(part, some), strict=True):
                found[position] = values
        return found

    def by_part(self, indices: np.ndarray) -> Iterator[tuple[Split, np.ndarray, np.ndarray]]:
        """Utterances by the split that holds them: the split, which of `indices` these are, and their positions in it."""
        if len(self.parts) == 1:
            yield self.parts[0], np.arange(len(indices)), indices
            return
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(owner).tolist():
            positions = np.flatnonzero(owner == number)
            yield self.parts[number], positions, indices[positions] - self._starts[number]

    def stream(self, *, frames_per_batch: int, **options: Any) -> "Stream":
        """The batches of an epoch in random order, the same for every number of ranks; see `Stream` for the options."""
        from encodeonce.store.streaming.stream import Stream

        return Stream(self, frames_per_batch=frames_per_batch, **options)  # pyrefly: ignore[bad-argument-type]

    def dask_array(self, output: str | None = None) -> "dask.array.Array":
        """An output as a dask array `[rows, D]`, a block a shard; see `views.dask_array`."""
        from encodeonce.store.views import dask_array

        return dask_array(self, output)  # pyrefly: ignore[bad-argument-type]

    def xarray(self) -> "xarray.Dataset":
        """Every output and the table as an xarray dataset; see `views.xarray_dataset`."""
        from encodeonce.store.views import xarray_dataset

        return xarray_dataset(self)  # pyrefly: ignore[bad-argument-type]

    def shard_urls(self, output: str | None = None) -> list[str]:
        """The shards of an output as plain WebDataset takes them; see `views.shard_urls`."""
        from encodeonce.store.views import shard_urls

        return shard_urls(self, output)  # pyrefly: ignore[bad-argument-type]

    def stats(self, output: str | None = None) -> "Statistics":
        """Mean, variance and extremes of each dimension; see `stats.statistics`."""
        from encodeonce.store.stats import statistics

        return statistics(self, output)  # pyrefly: ignore[bad-argument-type]

    def _default_output(self) -> str:
        preference = {"int8": 0, "float32": 1}

        def rank(output: Output) -> tuple[bool, int, bool, int, str, int]:
            base = output.name.removesuffix(f"-{output.dtype}")
            layer = re.fullmatch(r"layer-(\d+)", base)
            number = int(layer[1]) if layer else -1
            own, dtype = output.derivation is None, preference.get(output.dtype, 2)
            return own, number, base == "codes", -len(base), base, dtype

        return max(self._outputs.values(), key=rank).name
