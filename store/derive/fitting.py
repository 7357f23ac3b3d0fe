"""What is fitted over the frames of splits: mean and standard deviation, principal components."""

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
from encodeonce.store.derive.sources import SourceSplit
from encodeonce.store.derive.transforms import Transform
from encodeonce.store.errors import StoreError
from encodeonce.store.layout import Output
from encodeonce.store.moments import Moments
from encodeonce.store.objects import StorePath
from encodeonce.store.reader import FeatureStore
from encodeonce.store.stats import statistics


def fit_normalise(splits: Sequence[StorePath], output: Output) -> Transform:
    """Mean and standard deviation `[D]` of the splits' statistics, which are kept beside them (`store.stats`)."""
    found = [statistics(FeatureStore(split, cache_bytes=0), output.name).values for split in splits]
    joined = reduce(Moments.join, [moments for moments in found if isinstance(moments, Moments)])
    std = np.sqrt(joined.variance)
    constant = (joined.minimum == joined.maximum) | (std == 0)
    arrays = {"mean": joined.mean.astype(np.float32), "std": np.where(constant, 1, std).astype(np.float32)}
    said = {"frames": str(joined.count), "constant_dimensions": str(int(constant.sum()))}
    return Transform(arrays, said)


def fit_pca(splits: Sequence[StorePath], output: Output, dimensions: int, whiten: bool) -> Transform:
    """The principal components of the splits' frames, from their covariance; see `components`.

    Raises:
        StoreError: fewer frames than dimensions, or nothing varies along one that is to be whitened.
    """
    frames = (values for split in splits for values in SourceSplit(split, [output]).checked_frames())
    count, mean, covariance = covariance_of(frames, output.width)
    if dimensions > count:
        raise StoreError(f"pca --dimensions {dimensions}: there are only {count} frames to fit them on; take fewer")
    vectors, variances = components(covariance, dimensions)
    total = float(np.trace(covariance))
    explained = float(variances.sum()) / total if total > 0 else 1.0
    if whiten:
        # float64 leaves noise of this size where nothing varies (numpy.linalg.matrix_rank's tolerance)
        least = max(float(variances[0]), 0.0) * output.width * np.finfo(np.float64).eps
        if (flat := int((variances <= least).sum())) > 0:
            raise StoreError(
                f"pca --whiten --dimensions {dimensions}: the frames vary along {dimensions - flat} directions only; take no more"
            )
        vectors = vectors / np.sqrt(variances)[:, None]
    arrays = {
        "mean": mean.astype(np.float32),
        "components": vectors.astype(np.float32),
        "variance": variances.astype(np.float32),
    }
    return Transform(arrays, {"frames": str(count), "explained_variance": f"{explained:.6f}"})


def covariance_of(frames: Iterable[np.ndarray], width: int) -> tuple[int, np.ndarray, np.ndarray]:
    """How many frames there are, their mean `[D]` and covariance `[D, D]` (over the count), in float64, in one pass.

    Sums are taken around the mean of the first utterance, so that a large mean costs no digits.
    """
    count, shift = 0, np.zeros(width)
    total, products = np.zeros(width), np.zeros((width, width))
    for values in frames:
        block = values.astype(np.float64)
        if not count:
            shift = block.mean(axis=0)
        block -= shift
        count += len(block)
        total += block.sum(axis=0)
        products += block.T @ block
    apart = total / max(count, 1)
    return count, shift + apart, products / max(count, 1) - np.outer(apart, apart)


def components(covariance: np.ndarray, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvectors `[K, D]` of the largest eigenvalues `[K]`, largest first.

    Their signs are free: each vector's entry of the largest magnitude is made positive.
    """
    values, vectors = np.linalg.eigh(covariance)
    chosen = vectors[:, ::-1][:, :dimensions].T
    largest = np.abs(chosen).argmax(axis=1)
    signs = np.sign(chosen[np.arange(dimensions), largest])
    return chosen * signs[:, None], values[::-1][:dimensions]
