"""Statistics of a store's outputs, computed with Dask, a task a shard, and kept beside the splits of the feature set.

`<feature set>/stats/<split>/<output>.json` says what it was computed over; when the utterances or their audio have changed since,
it is computed again. Padding is never counted.
"""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.extras import extra
from encodeonce.store.files import read_json, write_json
from encodeonce.store.layout import SET_FILE, Output
from encodeonce.store.moments import Moments, Usage, join, measure
from encodeonce.store.objects import StorePath, name_below
from encodeonce.store.progress import Advance, silent
from encodeonce.store.reader import FeatureStore
from encodeonce.store.split import Split
from encodeonce.store.walk import by_shard, values_of

FORMAT = "encodeonce statistics"
LENGTH_BINS = 40


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """What the frames of an output are like. `values` holds `Moments`, or the `Usage` of codes."""

    encoder: str
    fingerprint: str
    output: Output
    utterances: int
    seconds: float
    content: str
    """sha256 over the ids, audio hashes and frames of the utterances."""
    values: Moments | Usage
    length_counts: np.ndarray
    """Utterances by length, `[bins]` int64."""
    length_edges: np.ndarray
    """Seconds, `[bins + 1]`: from 0 to the longest."""

    @property
    def frames(self) -> int:
        """How many frames were counted."""
        return self.values.count

    @property
    def mean(self) -> np.ndarray:
        """The mean of each dimension, `[D]` float64."""
        return self._moments.mean

    @property
    def variance(self) -> np.ndarray:
        """The mean squared deviation of each dimension, `[D]` float64."""
        return self._moments.variance

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of each dimension, `[D]` float64."""
        return np.sqrt(self.variance)

    @property
    def minimum(self) -> np.ndarray:
        """The least value of each dimension, `[D]` float64."""
        return self._moments.minimum

    @property
    def maximum(self) -> np.ndarray:
        """The greatest value of each dimension, `[D]` float64."""
        return self._moments.maximum

    @property
    def _moments(self) -> Moments:
        if isinstance(self.values, Usage):
            raise StoreError(
                f"{self.output.name} holds codes: they have no mean; see .values.counts and .values.perplexity"
            )
        return self.values

    def to_json(self) -> dict[str, Any]:
        """The statistics as they are kept."""
        values = self.values
        numbers = (
            {"counts": values.counts.tolist(), "perplexity": values.perplexity.tolist()}
            if isinstance(values, Usage)
            else {
                "mean": values.mean.tolist(),
                "variance": values.variance.tolist(),
                "minimum": values.minimum.tolist(),
                "maximum": values.maximum.tolist(),
            }
        )
        return {
            "format": FORMAT,
            "encoder": self.encoder,
            "fingerprint": self.fingerprint,
            "output": self.output.to_json(),
            "over": {
                "utterances": self.utterances,
                "frames": self.frames,
                "seconds": self.seconds,
                "content": self.content,
            },
            "lengths": {"counts": self.length_counts.tolist(), "edges_seconds": self.length_edges.tolist()},
            **numbers,
        }


def statistics(store: FeatureStore, output: str | None = None, advance: Advance = silent) -> Statistics:
    """The statistics of an output over all frames of a store: those that are kept, where they still hold, or new ones.

    New ones are kept beside each split, where that can be written. `advance` is told of frames that are done.

    Raises:
        StoreError: an unknown output, or a split without utterances.
    """
    spec = store.spec(output)
    contents = [content_hash(part) for part in store.parts]
    found = []
    for part, content in zip(store.parts, contents, strict=True):
        values = _kept(part, spec, content)
        if values is None:
            values = compute(part, spec, advance)
            _keep(_statistics([part], spec, [content], values), part)
        else:
            advance(int(part.frames.sum()))
        found.append(values)
    return _statistics(store.parts, spec, contents, join(found))


def load_statistics(store: FeatureStore, output: str | None = None) -> Statistics | None:
    """The statistics that are kept for an output, None where they are lacking or the store has changed since."""
    spec = store.spec(output)
    contents = [content_hash(part) for part in store.parts]
    found = [_kept(part, spec, content) for part, content in zip(store.parts, contents, strict=True)]
    whole = [values for values in found if values is not None]
    return _statistics(store.parts, spec, contents, join(whole)) if len(whole) == len(found) else None


def compute(part: Split, output: Output, advance: Advance = silent) -> Moments | Usage:
    """The statistics of an output over every frame of a split, in as many threads as there are cores."""
    with extra("views"):
        import dask
    if not len(part):
        raise StoreError(f"{part.path} holds no utterance, so it has no statistics")

    def of_shard(indices: np.ndarray) -> Moments | Usage:
        found = measure(values_of(part, output, indices), output.dtype)
        advance(int(part.frames[indices].sum()))
        return found

    tasks = [dask.delayed(of_shard, pure=False)(indices) for indices in by_shard(part)]
    return join(dask.compute(*tasks, scheduler="threads"))


def content_hash(part: Split) -> str:
    """sha256 over what a split holds: ids, hashes of the audio, frames."""
    audio = part.table["audio_sha256"].to_pylist()
    names = "\0".join(f"{name} {digest}" for name, digest in zip(part.ids.to_pylist(), audio, strict=True))
    return _sha256(names.encode(), part.frames.astype("<i4").tobytes())


def statistics_path(part: Split, output: str) -> StorePath | None:
    """Where the statistics of a split's output are kept; None for a split that lies in no feature set."""
    path = part.path.absolute() if isinstance(part.path, Path) else part.path
    for folder in path.parents:
        if (folder / SET_FILE).is_file():
            return folder / "stats" / name_below(path, folder) / f"{output}.json"
    return None


def _sha256(*pieces: bytes) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _statistics(parts: list[Split], spec: Output, contents: list[str], values: Moments | Usage) -> Statistics:
    content = contents[0] if len(contents) == 1 else _sha256("".join(contents).encode())
    seconds = np.concatenate([part.table["duration"].to_numpy() for part in parts])
    counts, edges = np.histogram(seconds, LENGTH_BINS, (0, float(seconds.max())))
    one = parts[0].attributes
    return Statistics(
        one.encoder, one.fingerprint, spec, len(seconds), float(seconds.sum()), content, values, counts, edges
    )


def _kept(part: Split, spec: Output, content: str) -> Moments | Usage | None:
    path = statistics_path(part, spec.name)
    try:
        data = read_json(path) if path else {}
        same = data["format"] == FORMAT and data["fingerprint"] == part.attributes.fingerprint
        if not (same and data["output"] == spec.to_json() and data["over"]["content"] == content):
            return None
        count = data["over"]["frames"]
        if spec.dtype == "uint16":
            return Usage(count, np.array(data["counts"], np.int64))
        mean, variance, low, high = (np.array(data[name]) for name in ("mean", "variance", "minimum", "maximum"))
        return Moments(count, mean, variance * count, low, high)
    except (StoreError, OSError, KeyError, TypeError, ValueError):
        return None  # lacking, or not ours to understand: it is computed again


def _keep(found: Statistics, part: Split) -> None:
    path = statistics_path(part, found.output.name)
    if path is None:
        return
    try:
        write_json(path, found.to_json())
    except StoreError as error:
        warnings.warn(f"the statistics are not kept: {error}", stacklevel=3)
