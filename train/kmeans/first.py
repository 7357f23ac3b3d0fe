"""The centres that a k-means begins with: frames of a sample."""

import numpy as np
from encodeonce.store.errors import StoreError
from encodeonce.store.extras import extra

MOST_BY_PLUS_PLUS = 4096
"""Beyond so many clusters k-means++, which reads the sample once for each, takes longer than the training."""


def method(clusters: int) -> str:
    """How the first centres of so many clusters are chosen."""
    return "k-means++" if clusters <= MOST_BY_PLUS_PLUS else "random frames"


def first_centres(sample: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """Distinct frames `[K, D]` of a sample `[N, D]` float32: by k-means++ (Arthur and Vassilvitskii 2007), or many by chance.

    Raises:
        StoreError: the sample has fewer distinct frames, or scikit-learn is not installed.
    """
    distinct = different(sample)
    if len(distinct) < clusters:
        raise StoreError(
            f"{clusters:,} clusters of {len(sample):,} frames, of which {len(distinct):,} are different: "
            f"take fewer --clusters, or more --frames"
        )
    if method(clusters) == "k-means++":
        with extra("units"):
            from sklearn.cluster import kmeans_plusplus
        centres, _ = kmeans_plusplus(sample[distinct], clusters, random_state=seed)
        return np.asarray(centres, np.float32)
    order = np.argsort(np.random.default_rng(seed).random(len(distinct)), kind="stable")
    return sample[distinct[order[:clusters]]]


def different(frames: np.ndarray) -> np.ndarray:
    """The positions of frames `[N, D]` that are like none before them, in order, by 64-bit hashes."""
    first: dict[int, int] = {}
    for position, row in enumerate(frames):
        first.setdefault(hash(row.tobytes()), position)
    return np.array(list(first.values()), np.int64)
