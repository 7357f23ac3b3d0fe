"""What a training tells while it runs: lines of metrics, the curves' picture, and where it stands; by the first rank alone."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from encodeonce.store.errors import StoreError
from encodeonce.store.files import make_folder
from encodeonce.train.config import LoopConfig
from encodeonce.train.curves import draw_curves
from encodeonce.train.forecast import Forecast
from encodeonce.train.meter import Meter
from encodeonce.train.metrics import Metrics, memory_bytes
from encodeonce.train.parts import Part
from encodeonce.train.progress import TrainingProgress, span
from encodeonce.train.ranks import Ranks
from encodeonce.train.step import Step
from encodeonce.train.validation import Validation

DRAW_SECONDS = 60.0
"""Between pictures: one takes a second of a CPU."""


class Reporting:
    """Of one run; `step` is where it begins, and `forecast` tells its time."""

    def __init__(
        self,
        folder: Path,
        ranks: Ranks,
        progress: TrainingProgress,
        step: int,
        config: LoopConfig,
        forecast: Forecast,
    ) -> None:
        self.forecast = forecast
        self.folder, self.ranks, self.progress, self.eval_steps = folder, ranks, progress, config.eval_steps
        self.begun, self.meter = time.monotonic(), Meter()
        self._metrics: Metrics | None = None
        self._drawn, self._validation = self.begun, 0.0
        if ranks.is_main:
            make_folder(folder)
            self._metrics = Metrics(folder, step, config.tensorboard)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self.begun

    def stepped(self, step: Step, number: int, part: Part) -> None:
        """Step `number` is done."""
        self.meter.add(step)
        self._tell(self.forecast.stepped(number, part, self.meter.seconds, self.seconds))

    def trained(self, step: Step, number: int, total: int, epoch: int, part: Part, learning_rate: float) -> None:
        """What is told of step `number` of `total`, and those since the last one that was told; every rank says so."""
        speed, memory = self.meter.lap(self.ranks), memory_bytes(self.ranks.device)
        if self._metrics is None:
            return
        where = {"step": number, "epoch": epoch, "part": part.number}
        losses = {"loss": step.loss(part.weights), "losses": step.losses, "learning_rate": learning_rate}
        rates = {"gradient_norm": step.gradient_norm, **speed, "memory_bytes": memory, "seconds": self.seconds}
        self._metrics.write({**where, **losses, **rates})
        left = speed["seconds_per_step"] * (total - number) + self._validation * (total - number) / self.eval_steps
        state = (
            f"{named(step.losses)}, {speed['frames_per_second']:,.0f} frames a second, {memory / 2**30:.1f} GB, "
            f"{speed['wait_share']:.1%} waiting, {span(left)} left"
        )
        self.progress.show(number, total, state)

    def validated(self, found: Validation, number: int, epoch: int, part: Part, is_best: bool, seconds: float) -> None:
        """The model was measured after step `number`, which took so many seconds."""
        if self._metrics is None:
            return
        self._validation = seconds
        where = {"step": number, "epoch": epoch, "part": part.number}
        rates = {"dev_loss": found.loss, "wer": found.wer, "cer": found.cer, "best": is_best, "seconds": seconds}
        self._metrics.write({**where, "dev": found.losses, **rates})
        if time.monotonic() - self._drawn > DRAW_SECONDS:
            self.draw()
        errors = ""
        if found.wer is not None and found.cer is not None:
            errors = f", {found.wer:.1%} of the words wrong, {found.cer:.1%} of the characters"
        self.progress.say(f"Step {number:,}: dev {named(found.losses)}{errors}{' (best)' if is_best else ''}")
        for example in found.examples:
            self.progress.say(f"  {example.id}")
            self.progress.say(f"    said    {example.said}")
            self.progress.say(f"    written {example.written}")
        self._tell(self.forecast.validated(seconds))

    def _tell(self, line: str | None) -> None:
        if line is not None:
            self.progress.say(line)

    def draw(self) -> None:
        """The curves so far; a picture that cannot be drawn ends no training."""
        if self._metrics is not None:
            try:
                draw_curves(self.folder)
            except (OSError, StoreError) as error:
                self.progress.say(f"no picture of the curves: {error}")
            self._drawn = time.monotonic()

    def close(self) -> None:
        """Nothing more comes."""
        if self._metrics is not None:
            self._metrics.close()


def named(losses: Mapping[str, Any]) -> str:
    """Losses as a person reads them."""
    return ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
