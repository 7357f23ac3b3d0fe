"""How weights move: AdamW and what of it decays, learning rates as functions of the step, a moving average of the weights."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from encodeonce.train.config import LoopConfig
from torch import Tensor, nn

TRI_STAGE_HOLD = 0.4
"""Share of all steps at the full rate; fairseq's usual phase_ratio is 0.1, 0.4, 0.5."""
TRI_STAGE_SCALE = 0.01
"""Where tri-stage begins and, unless told otherwise, ends: fairseq's init_lr_scale and final_lr_scale."""


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name; what is shared by several modules once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices with weight decay, vectors without; in the order of the model, which a saved state relies on."""
    parameters = list(trainable_parameters(model).values())
    matrices = [p for p in parameters if p.dim() >= 2]
    vectors = [p for p in parameters if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimiser(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW over what is trained, in one kernel where the device has it."""
    groups = parameter_groups(model, config.weight_decay)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for g in groups for p in g["params"])
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def learning_rate_factor(config: LoopConfig, step: int, steps: int) -> float:
    """The learning rate of step `step`, 0 to `steps` - 1, as a share of the full one; after the last step as at its end."""
    if config.schedule == "tri-stage":
        return tri_stage(step, steps, config.warmup_steps, config.final_learning_rate)
    if config.schedule == "cosine":
        return cosine(step, steps, config.warmup_steps, config.final_learning_rate)
    return warmup(step, config.warmup_steps)


def warmup(step: int, warmup_steps: int) -> float:
    """Up along a line, which is 1 at the end of the warm-up; the first step is not lost to a rate of 0."""
    return min(1.0, (step + 1) / max(1, warmup_steps))


def cosine(step: int, steps: int, warmup_steps: int, final: float) -> float:
    """Warm-up, then half a cosine from 1 to `final` (Loshchilov and Hutter 2017, without restarts)."""
    if step < warmup_steps:
        return warmup(step, warmup_steps)
    done = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def tri_stage(step: int, steps: int, warmup_steps: int, final: float) -> float:
    """fairseq's tri_stage (SpecAugment's): a line from 0.01 to 1, 1 for 40 % of all steps, an exponential down to `final`.

    A `warmup_steps` of 0 is a tenth of all steps, and a `final` of 0 is 0.01: an exponential never ends at 0.
    """
    warm, hold = warmup_steps or int(0.1 * steps), int(TRI_STAGE_HOLD * steps)
    decay, final = max(1, steps - warm - hold), final or TRI_STAGE_SCALE
    if step < warm:
        return TRI_STAGE_SCALE + (1 - TRI_STAGE_SCALE) * step / warm
    return final ** min(1.0, max(0, step - warm - hold) / decay)


class MovingAverage:
    """An exponential moving average of what is trained, in float32.

    After n updates the decay is at most (1 + n) / (10 + n), so that the first weights are soon forgotten (as TensorFlow's
    ExponentialMovingAverage does with num_updates).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._parameters = trainable_parameters(model)
        self.weights = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights as they are now."""
        self.updates += 1
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = [p.detach().float() for p in self._parameters.values()]
        torch._foreach_lerp_(list(self.weights.values()), now, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average's weights inside this, and its own again afterwards."""
        own = {name: p.detach().clone() for name, p in self._parameters.items()}
        self._fill(self.weights)
        try:
            yield
        finally:
            self._fill(own)

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Go on with a saved average."""
        self.updates = updates
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @torch.no_grad()
    def _fill(self, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(weights[name])
