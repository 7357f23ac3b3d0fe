"""A trained k-means: a folder of centres, and the units of features, the number of the nearest centre to each frame.

`kmeans.json` says what it was trained on and holds its fingerprint, `centres.safetensors` the centres. The first is written last.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from encodeonce.store.codebooks import Codebooks, Quantizer, read_codebooks
from encodeonce.store.errors import DamagedError, MissingError, StoreError
from encodeonce.store.files import read_json, write_json
from encodeonce.store.identity import fingerprint
from encodeonce.store.layout import Output
from encodeonce.store.objects import StorePath, store_path

FORMAT = "encodeonce k-means"
KMEANS_FILE = "kmeans.json"
CENTRES_FILE = "centres.safetensors"
SOURCE_FIELDS = ("encoder", "source", "fingerprint", "identity", "output")
MOST_CLUSTERS = 1 << 16
"""Units are uint16."""
BLOCK_BYTES = 64 << 20
"""Distances that are held at a time when units are assigned."""


@dataclass(frozen=True, eq=False)
class KMeans:
    """K centres, trained on frames of one output of one feature set.

    Attributes:
        centres: `[K, D]` float32.
        counts: training frames whose nearest centre each was, `[K]` int64; none is 0.
        what: what was clustered, as `Output.what` says it ("hidden_states[9]").
        source: where the training frames are from: `encoder`, its `source`, and the feature set's `fingerprint` and
            `identity`, and `output` as JSON.
        training: how it was trained, and what came of it (frames, seed, inertia ...); not in the fingerprint.

    Raises:
        StoreError: more than 65,536 centres, none, values that are no numbers, or a centre without frames.
    """

    centres: np.ndarray
    counts: np.ndarray
    what: str
    source: dict[str, Any]
    training: dict[str, Any]

    def __post_init__(self) -> None:
        if self.centres.ndim != 2 or not 1 <= len(self.centres) <= MOST_CLUSTERS:
            raise StoreError(
                f"centres of shape {list(self.centres.shape)}: a k-means has 1 to {MOST_CLUSTERS:,} of them"
            )
        if not np.isfinite(self.centres).all():
            bad = int(np.flatnonzero(~np.isfinite(self.centres).all(axis=1))[0])
            raise StoreError(f"centre {bad} holds NaN or infinity; train the k-means again")
        if self.counts.shape != (len(self.centres),):
            raise StoreError(f"{len(self.centres)} centres, and counts of shape {list(self.counts.shape)}")
        if (empty := np.flatnonzero(self.counts <= 0)).size:
            raise StoreError(
                f"{empty.size} of {len(self.counts)} clusters are empty, e.g. {empty[0]}: no frame is nearest to them; "
                f"train fewer --clusters, or on more --frames"
            )

    @property
    def clusters(self) -> int:
        """K."""
        return len(self.centres)

    @property
    def width(self) -> int:
        """D."""
        return self.centres.shape[1]

    @property
    def encoder(self) -> str:
        """The name of the encoder whose features were clustered."""
        return self.source["encoder"]

    @cached_property
    def codebooks(self) -> Codebooks:
        """The centres as the one codebook of the units."""
        return Codebooks((Quantizer(self.centres),))

    @cached_property
    def fingerprint(self) -> str:
        """sha256, 64 hex digits, of the centres, what they are of, and the encoder's identity."""
        return fingerprint(
            {"centres": self.codebooks.sha256, "what": self.what, "identity": self.source["identity"]},
        )

    @cached_property
    def _half_norms(self) -> np.ndarray:
        return half_norms(self.centres)

    def assign(self, values: np.ndarray) -> np.ndarray:
        """The units `[T, 1]` uint16 of features `[T, D]`: the nearest centre by Euclidean distance, the first of several.

        Raises:
            StoreError: features of another width, codes or int8 that was not restored, or values that are no numbers.
        """
        self.check_features(values)
        return nearest(values, self.centres, self._half_norms)[:, None].astype(np.uint16)

    def check_features(self, values: np.ndarray) -> None:
        """Refuse what is no features `[T, D]` of this k-means.

        Raises:
            StoreError: another width, or no floating values.
        """
        if values.dtype.kind != "f":
            what = "codes" if values.dtype == np.uint16 else f"values of {values.dtype}"
            raise StoreError(f"{what} cannot be made units: a k-means takes features of float16 or float32")
        if values.ndim != 2 or values.shape[1] != self.width:
            raise StoreError(
                f"the k-means has {self.width} dimensions ({self.what} of {self.encoder}), the features have "
                f"{values.shape[-1]}: take features of the output it was trained on, or train one on these"
            )

    def write(self, folder: str | StorePath) -> None:
        """Write it into a folder; what reads it finds the old one, the new one, or an error that says it is torn."""
        place = store_path(folder)
        self.codebooks.write(place / CENTRES_FILE)
        write_json(
            place / KMEANS_FILE,
            {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "clusters": self.clusters,
                "width": self.width,
                "what": self.what,
                "source": self.source,
                "training": self.training,
                "counts": self.counts.tolist(),
            },
        )


def half_norms(centres: np.ndarray) -> np.ndarray:
    """|c|^2 / 2 of centres `[K, D]` float32: `[K]`."""
    return 0.5 * np.einsum("kd,kd->k", centres, centres)


def nearest(values: np.ndarray, centres: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """The number `[T]` int64 of the centre `[K, D]` nearest to each frame `[T, D]`, with the centres' `half_norms`.

    Computed in float32, as the least |c|^2 / 2 - x.c; at most `BLOCK_BYTES` of distances are held.

    Raises:
        StoreError: a value is no number.
    """
    found = np.empty(len(values), np.int64)
    frames = max(1, BLOCK_BYTES // (4 * len(centres)))
    for first in range(0, len(values), frames):
        block = np.asarray(values[first : first + frames], np.float32)
        if not (finite := np.isfinite(block).all(axis=1)).all():
            raise StoreError(f"frame {first + int(finite.argmin())} holds NaN or infinity: no centre is nearest to it")
        distances = block @ centres.T
        np.subtract(norms, distances, out=distances)
        found[first : first + frames] = distances.argmin(axis=1)
    return found


def read_kmeans(folder: str | StorePath) -> KMeans:
    """Read what `KMeans.write` wrote.

    Raises:
        StoreError: the folder holds no k-means. DamagedError: its centres are not those of its fingerprint.
    """
    place = store_path(folder)
    try:
        data = read_json(place / KMEANS_FILE)
    except (MissingError, NotADirectoryError) as error:
        raise StoreError(f"{place} holds no k-means: no {KMEANS_FILE} in it; train-kmeans makes one") from error
    if data.get("format") != FORMAT:
        raise StoreError(f"{place / KMEANS_FILE} is no k-means, but {data.get('format') or 'something else'}")
    quantizers = read_codebooks(place / CENTRES_FILE).quantizers
    try:
        centres, counts, source = quantizers[0].codebook, np.array(data["counts"], np.int64), data["source"]
        Output.from_json(source["output"])
        found = KMeans(centres, counts, data["what"], {name: source[name] for name in SOURCE_FIELDS}, data["training"])
        recorded, ours = data["fingerprint"], found.fingerprint
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{place / KMEANS_FILE} lacks a field: {error}") from error
    except StoreError as error:
        raise StoreError(f"{place} is no k-means to use: {error}") from error
    if recorded != ours:
        raise DamagedError(
            f"{place}: fingerprint {recorded}, but its centres and source give {ours}; copy the folder again, or train anew"
        )
    return found
