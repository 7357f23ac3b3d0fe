"""The one place where training ranks see each other's tensors: rows of all ranks together, with gradients."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Peers:
    """The ranks that share: which one this is, how many there are, and their process group (None: the default one)."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def here(cls) -> "Peers":
        """Those of the running process; one alone where nothing is distributed."""
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        return cls(dist.get_rank(), dist.get_world_size())


@dataclass(frozen=True)
class Rows:
    """Rows of all ranks, in the order of the ranks; this rank's own begin at `first`."""

    tensor: Tensor
    first: int


def gather(tensor: Tensor, peers: Peers) -> Rows:
    """The rows of every rank's `[B, ...]`, which may differ in every size: zeros fill up all but the first to the largest.

    Every rank has to call, and where a gradient is asked for, every rank has to go back through it. A rank's gradient is then the sum of
    what all ranks' losses ask of its rows.
    """
    if peers.size == 1:
        return Rows(tensor, 0)
    own = torch.tensor(tensor.shape, device=tensor.device)
    shapes = [torch.empty_like(own) for _ in range(peers.size)]
    dist.all_gather(shapes, own, group=peers.group)
    sizes = torch.stack(shapes).cpu()
    largest = sizes.amax(0).tolist()
    padding = [n for most, size in reversed(list(zip(largest, tensor.shape, strict=True))) for n in (0, most - size)]
    parts = _AllGather.apply(F.pad(tensor, padding), peers)
    batches = sizes[:, 0].tolist()
    rows = torch.cat([part[:size] for part, size in zip(parts, batches, strict=True)])
    return Rows(rows, sum(batches[: peers.rank]))


class _AllGather(torch.autograd.Function):
    """All ranks' tensors of one shape, `[ranks, ...]`. torch.distributed.nn has one that gloo runs as a scatter from each rank."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        parts = [torch.empty_like(tensor) for _ in range(peers.size)]
        dist.all_gather(parts, tensor.contiguous(), group=peers.group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        together = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(together, group=ctx.peers.group)
        return together[ctx.peers.rank], None
