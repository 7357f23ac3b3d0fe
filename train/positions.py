"""Sinusoidal positions (Vaswani et al. 2017, "Attention is all you need")."""

import torch
from torch import Tensor

LONGEST = 10_000.0
"""Positions after which the slowest wave has turned once, over 2 pi."""


def sinusoids(count: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Positions 0 to `count` - 1, `[count, width]` float32: sines in the first half of the dimensions, cosines in the second."""
    half = (width + 1) // 2
    rates = LONGEST ** -(torch.arange(half, device=device, dtype=torch.float32) / half)
    angles = torch.arange(count, device=device, dtype=torch.float32)[:, None] * rates  # [count, half]
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width]
