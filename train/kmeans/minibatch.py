"""Mini-batch k-means (Sculley, "Web-scale k-means clustering", 2010): by scikit-learn on a CPU, by torch on a GPU.

Each centre is the running mean of the frames it has won: its learning rate is 1 / the count of them. A centre that has won none
so far is put onto a frame of the mini-batch.
"""

from typing import Protocol

import numpy as np
from encodeonce.store.extras import extra
from encodeonce.store.kmeans import half_norms, nearest

NEVER_WON = 1e-12
"""scikit-learn puts centres anew whose count is less than this share of the greatest one: those of count 0 alone.

Its own default, 0.01, takes rare sounds for starved centres where silence is common.
"""


class MiniBatch(Protocol):
    """A k-means that is being trained."""

    @property
    def centres(self) -> np.ndarray:
        """`[K, D]` float32, a copy."""
        ...

    def step(self, frames: np.ndarray) -> None:
        """Learn from a mini-batch `[N, D]` float32."""
        ...

    def move(self, clusters: np.ndarray, frames: np.ndarray) -> None:
        """Put some centres, by number, onto frames `[n, D]`; from then on none is moved but by the frames it wins."""
        ...

    def nearest(self, frames: np.ndarray) -> np.ndarray:
        """The number of each frame's nearest centre, `[N]`."""
        ...


class ScikitMiniBatch:
    """scikit-learn's `MiniBatchKMeans`, from given centres, a mini-batch at a time.

    Raises:
        StoreError: scikit-learn is not installed.
    """

    def __init__(self, centres: np.ndarray, seed: int) -> None:
        with extra("units"):
            from sklearn.cluster import MiniBatchKMeans
        self._model = MiniBatchKMeans(
            len(centres), init=centres, n_init=1, random_state=seed, reassignment_ratio=NEVER_WON
        )

    @property
    def centres(self) -> np.ndarray:
        return np.array(self._model.cluster_centers_, np.float32)

    def step(self, frames: np.ndarray) -> None:
        self._model.partial_fit(frames)

    def move(self, clusters: np.ndarray, frames: np.ndarray) -> None:
        self._model.set_params(reassignment_ratio=0.0)
        self._model.cluster_centers_[clusters] = frames

    def nearest(self, frames: np.ndarray) -> np.ndarray:
        centres = self._model.cluster_centers_
        return nearest(frames, centres, half_norms(centres))
