"""What a training consists of: its phases, and then the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

from encodeonce.train.config import LoopConfig, TrainConfig
from encodeonce.train.optimiser import learning_rate_factor


@dataclass(frozen=True)
class Part:
    """Steps `first` to `end` - 1 of a training, with objectives and a schedule of their own; it begins with a fresh optimiser."""

    number: int
    first: int
    end: int
    weights: dict[str, float]
    """Of the objectives that are computed, by name."""
    learning_rate: float
    final: bool
    """The last part; what is best is sought in it alone."""

    def rate(self, config: LoopConfig, step: int) -> float:
        """The learning rate of a step."""
        return self.learning_rate * learning_rate_factor(config, step - self.first, self.end - self.first)


def plan_parts(config: TrainConfig, rest: int) -> list[Part]:
    """The phases, and then `rest` steps with the objectives of the configuration."""
    loop, objectives = config.training, vars(config.objectives)
    weights = {name: section.weight for name, section in objectives.items() if section is not None}
    planned = [(phase.objectives, phase.steps, phase.learning_rate or loop.learning_rate) for phase in config.phases]
    parts: list[Part] = []
    for given, steps, rate in [*planned, (weights, rest, loop.learning_rate)]:
        first = parts[-1].end if parts else 0
        parts.append(Part(len(parts), first, first + steps, active(given), rate, len(parts) == len(planned)))
    return parts


def active(weights: Mapping[str, float]) -> dict[str, float]:
    """The objectives that have to be computed: those of some weight, and stc for the negatives that stm takes from it."""
    some = {name: weight for name, weight in weights.items() if weight > 0}
    return {"stc": 0.0, **some} if "stm" in some else some
