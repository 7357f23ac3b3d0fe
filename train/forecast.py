"""How long a training takes, told once its first few steps are known."""

from encodeonce.train.parts import Part
from encodeonce.train.progress import span

FEW_STEPS, FEW_SECONDS = 10, 20.0
"""After so many steps, or so long, the pace is known well enough; a part's first step is slower than the others, and not counted."""


class Forecast:
    """The time of each part of a training: told after its first few steps, and again when its first validation is over.

    Args:
        eval_steps: between validations; none where nothing is validated.
        max_minutes: after which the run ends.
    """

    def __init__(self, eval_steps: int | None, max_minutes: float | None) -> None:
        self.eval_steps, self.max_minutes = eval_steps, max_minutes
        self._part: Part | None = None
        self._begun, self._since, self._before = 0, 0.0, 0.0
        self._pace: float | None = None
        self._validation: float | None = None

    def stepped(self, number: int, part: Part, in_steps: float, in_all: float) -> str | None:
        """Step `number`, of a part, is done: what to say now, if anything.

        Args:
            in_steps: seconds that this run has spent in steps.
            in_all: seconds that it has taken, validations included.
        """
        if self._part != part:
            self._part, self._begun, self._since, self._before = part, number - 1, in_steps, in_all
            self._pace = self._validation = None
            return None
        steps, seconds = number - self._begun - 1, in_steps - self._since
        if self._pace is not None or (steps < FEW_STEPS and seconds < FEW_SECONDS):
            return None
        self._pace = seconds / steps
        return self._line(part, self._pace)

    def validated(self, seconds: float) -> str | None:
        """A validation has taken so many seconds: what to say now, if anything."""
        first, self._validation = self._validation is None, seconds
        return self._line(self._part, self._pace) if first and self._part and self._pace is not None else None

    def _line(self, part: Part, pace: float) -> str:
        steps, every = part.end - self._begun, self.eval_steps
        count = -(-part.end // every) - self._begun // every if every else 0  # one at each multiple, and one at the end
        seconds, besides = pace * steps + count * (self._validation or 0.0), ""
        if count:
            named = f"{count:,} validation{'s' if count > 1 else ''}"
            known = self._validation is not None
            besides = f", {named} of {span(self._validation or 0.0)} included" if known else f", beside {named}"
        line = f"Time: about {span(seconds)} for {steps:,} steps{besides}"
        if self.max_minutes is None:
            return line
        share = (60 * self.max_minutes - self._before) / max(seconds, 1e-9)
        ends = f"; training.max_minutes={self.max_minutes:g} ends it near step {self._begun + int(share * steps):,}"
        return line + (ends if share < 1 else "")
