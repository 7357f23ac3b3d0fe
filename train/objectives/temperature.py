"""The learned temperature of cosines."""

import torch
from torch import Tensor, nn

LEAST = 0.01
"""Logits are cosines times 100 at most (Radford et al. 2021, CLIP, section 2.5): beyond, training becomes unstable."""


class Temperature(nn.Module):
    """Logits from cosines: over a learned value, or over `LEAST` where training has taken it below."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, cosines: Tensor) -> Tensor:
        lift = (
            (LEAST - self.value).clamp(min=0).detach()
        )  # a clamp of the value itself would stop its gradient there for good
        return cosines / (self.value + lift)
