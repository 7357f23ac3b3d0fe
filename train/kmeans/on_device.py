"""Mini-batch k-means in torch, on any device: the same algorithm as scikit-learn's."""

import numpy as np
import torch

BLOCK_BYTES = 256 << 20
"""Distances that are held at a time."""


class TorchMiniBatch:
    """A `MiniBatch` on a device, from given centres `[K, D]`."""

    def __init__(self, centres: np.ndarray, seed: int, device: str) -> None:
        self._centres = torch.from_numpy(np.array(centres, np.float32)).to(device)
        self._counts = torch.zeros(len(centres), dtype=torch.int64, device=device)
        self._generator = torch.Generator().manual_seed(seed)
        self._reseed = True

    @property
    def centres(self) -> np.ndarray:
        return self._centres.cpu().numpy().copy()

    def step(self, frames: np.ndarray) -> None:
        values = torch.from_numpy(frames).to(self._centres.device)
        labels = self._nearest(values)
        won = torch.bincount(labels, minlength=len(self._centres))
        self._counts += won
        sums = torch.zeros_like(self._centres).index_add_(0, labels, values)
        change = sums.sub_(self._centres * won[:, None]).div_(self._counts.clamp(min=1)[:, None])
        self._centres += change
        if self._reseed:
            self._put_anew(values)

    def _put_anew(self, values: torch.Tensor) -> None:
        """Put centres that have won nothing so far, as many as half of the mini-batch, onto frames of it."""
        starved = torch.nonzero(self._counts == 0)[:, 0][: len(values) // 2]
        if len(starved):
            chosen = torch.randperm(len(values), generator=self._generator)[: len(starved)]
            self._centres[starved] = values[chosen.to(values.device)]
            self._counts[starved] = self._counts[self._counts > 0].min()

    def move(self, clusters: np.ndarray, frames: np.ndarray) -> None:
        self._reseed = False
        self._centres[torch.from_numpy(clusters)] = torch.from_numpy(frames).to(self._centres.device)

    def nearest(self, frames: np.ndarray) -> np.ndarray:
        return self._nearest(torch.from_numpy(frames).to(self._centres.device)).cpu().numpy()

    def _nearest(self, values: torch.Tensor) -> torch.Tensor:
        half_norms = self._centres.square().sum(dim=1) / 2
        block = max(1, BLOCK_BYTES // (4 * len(self._centres)))
        found = [torch.addmm(half_norms, some, self._centres.T, alpha=-1).argmin(dim=1) for some in values.split(block)]
        return torch.cat(found)
