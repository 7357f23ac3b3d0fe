"""SpecAugment (Park et al. 2019) on features: random spans, drawn for each utterance, from torch's generator."""

import torch
from torch import Tensor


def spans(count: int, longest: Tensor, within: Tensor, places: int) -> Tensor:
    """`[B, places]`, true inside any of `count` spans; they may overlap.

    Args:
        longest: places of a span at most, `[B]`; each has 0 up to so many, all equally likely.
        within: `[B]`, every span lies in the first so many places; at least `longest`.
    """
    width, start = torch.rand(2, len(longest), count, device=longest.device)  # [B, count] each
    width = uniform(width, longest[:, None])
    start = uniform(start, within[:, None] - width)
    here = torch.arange(places, device=longest.device)
    inside = (here >= start[..., None]) & (here < (start + width)[..., None])  # [B, count, places]
    return inside.any(1)


def uniform(draw: Tensor, most: Tensor) -> Tensor:
    """A whole number from 0 to `most` for a number drawn from [0, 1)."""
    return torch.minimum((draw * (most + 1)).long(), most)  # the product may round up to most + 1
