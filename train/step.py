"""One optimiser step over the micro-batches of all ranks."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from encodeonce.train.batch import TrainBatch
from encodeonce.train.checkpoint import RESUME
from encodeonce.train.checks import is_gguf, objective_weights
from encodeonce.train.config import TrainConfig
from encodeonce.train.errors import TrainingError
from encodeonce.train.optimiser import trainable_parameters
from encodeonce.train.randomness import random_state, set_random_state
from encodeonce.train.ranks import Ranks
from encodeonce.train.validation import count
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from encodeonce.train.model import AdapterModel

MOST_NAMED = 8
MOST_SKIPPED = 30
"""Steps in a row that a gradient scaler may skip before it is called a failure: its scale is then 2^30 times smaller."""


@dataclass(frozen=True)
class Step:
    """What a step did; numbers are of all ranks."""

    losses: dict[str, float]
    """By objective, nats an element."""
    gradient_norm: float
    tokens: float
    """Elements of the objective that has most of them."""
    frames: float
    wrong: str | None = None
    """Why the weights were left as they were."""

    def loss(self, weights: Mapping[str, float]) -> float:
        """The weighted sum of the losses."""
        return sum(weight * self.losses[name] for name, weight in weights.items())


class Stepper:
    """Moves the weights of a model.

    The gradient is that of sum_o weight_o * (sum of the loss over all micro-batches and ranks) / (count over all of them): counts
    are told on the host before anything is computed, so that each micro-batch is scaled as it is computed.

    Args:
        find_unused: parameters that are trained may be left out by some objectives; otherwise the first batch tells.
    """

    def __init__(self, model: "AdapterModel", ranks: Ranks, clip_norm: float, find_unused: bool) -> None:
        self.model, self.ranks, self.clip_norm = model, ranks, clip_norm
        self.optimiser: Any = None
        self._forward: nn.Module | None = None if ranks.world_size > 1 else model
        self._parameters = list(trainable_parameters(model).values())
        self._find_unused, self._skipped = find_unused, 0

    def optimise(self, optimiser: torch.optim.Optimizer) -> None:
        """Take another optimiser from here on."""
        self.ranks.accelerator._optimizers.clear()
        self.optimiser = self.ranks.accelerator.prepare_optimizer(optimiser, device_placement=False)

    def step(
        self,
        batches: Sequence[TrainBatch],
        weights: Mapping[str, float],
        learning_rate: float,
        advice: Callable[[], str],
    ) -> Step:
        """Make a step; where a loss or the gradient is not finite, the weights stay, and `Step.wrong` says why.

        Args:
            advice: what to do where memory is short.

        Raises:
            TrainingError: memory is short.
        """
        counts = {name: sum(count(self.model, name, batch.tokens[name]) for batch in batches) for name in weights}
        counts = self.ranks.total_of({**counts, "frames": sum(batch.frames for batch in batches)})
        frames = counts.pop("frames")
        scales = {n: weight * self.ranks.world_size / max(counts[n], 1) for n, weight in weights.items()}
        sums: list[Tensor] = []
        for number, batch in enumerate(batches):
            try:
                sums.append(self._backward(batch, scales, last=number == len(batches) - 1))
            except (MemoryError, RuntimeError) as error:
                if not is_short_of_memory(error):
                    raise
                raise TrainingError(
                    f"out of memory at a batch of {len(batch)} utterances, {batch.padded_frames:,} frames with padding: {advice()}"
                ) from error
        norm = self.ranks.accelerator.clip_grad_norm_(self._parameters, self.clip_norm)
        assert isinstance(norm, Tensor)
        host = torch.cat([*sums, norm.detach().float().reshape(1)]).tolist()  # the step's one wait for the device
        by_batch = [host[i : i + len(weights)] for i in range(0, len(host) - 1, len(weights))]
        totals = self.ranks.total([math.fsum(column) for column in zip(*by_batch, strict=True)])
        losses = {n: value / max(counts[n], 1) for n, value in zip(weights, totals, strict=True)}
        wrong = self._wrong(losses, host[-1], batches, by_batch)
        if wrong is None:
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate
            self.optimiser.step()
        self.optimiser.zero_grad()
        return Step(losses, host[-1], max(counts.values(), default=0), frames, wrong)

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, and the scaler's."""
        scaler = self.ranks.accelerator.scaler
        optimiser = None if self.optimiser is None else self.optimiser.state_dict()
        return {"optimiser": optimiser, "scaler": None if scaler is None else scaler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; options of the optimiser stay those of the configuration."""
        options = [{k: v for k, v in group.items() if k != "params"} for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, ours in zip(self.optimiser.param_groups, options, strict=True):
            group.update(ours)
        if state["scaler"] and (scaler := self.ranks.accelerator.scaler):
            scaler.load_state_dict(state["scaler"])

    def _backward(self, batch: TrainBatch, scales: Mapping[str, float], last: bool) -> Tensor:
        """Add the gradients of a micro-batch; its sums of losses, `[objectives]`."""
        batch = batch.to(self.ranks.device)
        if self._forward is None:
            self._forward = self._distributed(batch, scales)
        accelerator = self.ranks.accelerator
        with nullcontext() if last else accelerator.no_sync(self._forward):
            with accelerator.autocast():
                found = self._forward(batch.outputs, batch.lengths, batch.tokens, list(scales))
            sums = torch.stack([found[name].float() for name in scales])
            # Scales stay numbers of Python: a tensor of them would have to be copied to the GPU, which waits for it.
            accelerator.backward(
                sum((scale * part for scale, part in zip(scales.values(), sums, strict=True)), sums.new_zeros(()))
            )
        return sums.detach()

    def _distributed(self, batch: TrainBatch, scales: Mapping[str, float]) -> nn.Module:
        """The model with gradients averaged over the ranks; what no objective reaches is looked for where there is any."""
        unused = self._find_unused or bool(sum(self.ranks.total([self._leaves_out(batch, scales)])))
        device = [self.ranks.device.index] if self.ranks.device.type == "cuda" else None
        with warnings.catch_warnings():  # torch 2.13 has another name for broadcast_buffers, which 2.11 lacks
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(
                self.model, device, broadcast_buffers=False, find_unused_parameters=unused, gradient_as_bucket_view=True
            )

    def _leaves_out(self, batch: TrainBatch, scales: Mapping[str, float]) -> bool:
        """Whether some trained parameter gets no gradient from these objectives; changes nothing."""
        if self._find_unused:
            return True
        random = random_state(self.ranks.device)
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        with self.ranks.accelerator.autocast():
            found = self.model(batch.outputs, batch.lengths, batch.tokens, list(scales))
        torch.stack([found[name].float() for name in scales]).sum().backward()
        left_out = any(p.grad is None for p in self._parameters)
        for parameter in self._parameters:
            parameter.grad = None
        for name, value in self.model.named_buffers():
            value.copy_(buffers[name])
        set_random_state(random, self.ranks.device)
        return left_out

    def _wrong(
        self,
        losses: Mapping[str, float],
        norm: float,
        batches: Sequence[TrainBatch],
        by_batch: Sequence[Sequence[float]],
    ) -> str | None:
        """What is not finite, on any rank, and in which utterances."""
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        overflow = self._skipped > (MOST_SKIPPED if self.ranks.accelerator.scaler else 0)
        if not bad and not overflow:
            return None
        mine = [
            b for b, values in zip(batches, by_batch, strict=True) if not bad or not all(map(math.isfinite, values))
        ]
        ids = [name for part in self.ranks.gather([name for b in mine for name in b.ids]) for name in part]
        named = ", ".join(ids[:MOST_NAMED]) + (f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else "")
        what = f"the loss of {' and '.join(bad)} is {losses[bad[0]]}" if bad else f"the gradient's norm is {norm}"
        return f"{what}, in a batch of {named}"


def memory_advice(config: TrainConfig) -> str:
    """Which knobs lower the memory that a step takes, and what else they change."""
    frames, steps = config.data.frames_per_batch, config.training.gradient_accumulation_steps
    smaller = f"lower data.frames_per_batch ({frames}) and raise training.gradient_accumulation_steps ({steps}) as much"
    recompute = "" if config.training.gradient_checkpointing else "set training.gradient_checkpointing=true"
    if contrasts := [name for name in ("stc", "stm") if objective_weights(config).get(name)]:
        first = f"{recompute}, or " if recompute else ""
        fewer = f"which leaves {' and '.join(contrasts)} fewer candidates"
        knobs = f"{first}{smaller}, {fewer} (objectives.stc.queue, in another output_dir, keeps more)"
    else:
        knobs = f"{smaller}, which trains the same" + (f", or {recompute}" if recompute else "")
    advice = f"{knobs}; {RESUME}, its epoch from the beginning"
    if config.llm and config.llm.quantise != "4bit" and not is_gguf(config.llm.model):
        advice += f"; or in another output_dir take llm.quantise=4bit, beginning with init_from={config.output_dir}"
    return advice


def is_short_of_memory(error: BaseException) -> bool:
    """Whether an error says that the host's memory, or the device's, does not suffice."""
    said = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in str(error) for words in said)
