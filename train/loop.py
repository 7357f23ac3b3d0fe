"""The training loop: steps of a global batch that is the same however it is cut, validation, checkpoints, and going on exactly."""

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from encodeonce.store.streaming.stream import plan_differences
from encodeonce.train.batch import Batches, TrainBatch
from encodeonce.train.checkpoint import (
    RESUME,
    Checkpoint,
    Fingerprints,
    begin_with,
    check_fits,
    check_same_model,
    find_checkpoint,
    load_checkpoint,
    load_trainable,
    other_vocabularies,
    save_checkpoint,
)
from encodeonce.train.config import TrainConfig
from encodeonce.train.errors import TrainingError
from encodeonce.train.forecast import Forecast
from encodeonce.train.interrupts import Interrupts
from encodeonce.train.metrics import memory_bytes
from encodeonce.train.optimiser import MovingAverage, make_optimiser, trainable_parameters
from encodeonce.train.parts import Part, plan_parts
from encodeonce.train.progress import TrainingProgress
from encodeonce.train.randomness import random_state, seed_all, set_random_state
from encodeonce.train.ranks import Ranks
from encodeonce.train.reporting import Reporting
from encodeonce.train.step import Stepper, is_short_of_memory, memory_advice
from encodeonce.train.validation import Validation, pick_sample, validate

if TYPE_CHECKING:
    from encodeonce.train.model import AdapterModel

Ended = Literal["finished", "early", "minutes", "interrupted"]


@dataclass(frozen=True)
class TrainingReport:
    """How a training ended."""

    output_dir: str
    ended: Ended
    """finished: all steps; early: `patience` validations without a better one; minutes: `max_minutes` are over; interrupted:
    Ctrl-C or SIGTERM. After the last two a later run goes on."""
    steps: int
    """Of the whole training so far."""
    total_steps: int
    epoch: int
    best: dict[str, Any] | None
    """step, loss, losses, wer and cer of the best checkpoint."""
    seconds: float
    """Of this run."""
    wait_share: float
    """Of this run's time in training steps, what was spent waiting for data."""
    memory_bytes: int


@dataclass
class Best:
    """The best validation so far, and how many have come since."""

    step: int
    dev: dict[str, Any]
    misses: int = 0

    def value(self, by: Literal["wer", "loss"]) -> tuple[float, ...]:
        """What is to be small: the word error rate, where that is asked for, and then the loss."""
        loss = math.inf if math.isnan(self.dev["loss"]) else self.dev["loss"]
        return (self.dev["wer"], loss) if by == "wer" and self.dev["wer"] is not None else (loss,)


class Trainer:
    """Trains a model on batches, and keeps what it needs to go on: `Trainer(...).train()`.

    A step takes `gradient_accumulation_steps` micro-batches on every rank (what is left of them at an epoch's end), and its
    loss is, objective by objective, their sum over the elements of all of them. A run that was killed at any time and goes on
    from its last checkpoint comes to the same weights as one that was not; on a CPU bit for bit. On another number of ranks
    it goes on at the same place of the data.

    Args:
        ranks: made before data and model.
        max_minutes: in place of the configuration's.

    Raises:
        TrainingError: output_dir holds another training, or what is to be resumed does not fit.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: "AdapterModel",
        data: Batches,
        ranks: Ranks,
        progress: TrainingProgress | None = None,
        max_minutes: float | None = None,
    ) -> None:
        self.config, self.loop, self.data, self.ranks = config, config.training, data, ranks
        self.model = model.to(ranks.device)
        self.progress = progress if progress and ranks.is_main else TrainingProgress(quiet=True)
        self.max_minutes = max_minutes or self.loop.max_minutes
        self.output_dir = Path(config.output_dir)
        self.fingerprints = Fingerprints.of(data.identity, model)
        self.sample = pick_sample(data.dev_ids, self.loop.eval_utterances, config.seed)
        self.dev_set = hashlib.sha256("\n".join([*sorted(data.dev_ids), "", *self.sample]).encode()).hexdigest()
        """What the dev set and its sample are; measured on another, no checkpoint is better than a later one."""
        self.step, self.saved_at = 0, -1
        self.validation_due = False
        """A validation of the weights as they are was given up, or not begun; it comes before the next step."""
        self.best: Best | None = None
        self.average: MovingAverage | None = None
        self._batches: Iterator[TrainBatch] | None = None
        seed_all(config.seed + 1_000_003 * ranks.rank)  # every rank draws masks of its own
        found = find_checkpoint(config)
        state = self._read(found) if found else None
        self.other_plan = plan_differences(data.train.state_dict(), state["stream"]) if state else ""
        self.epoch_steps: int | None = None
        """Of the first epoch, where epochs are what is asked for."""
        self.rest = self._rest_steps(state)
        self.parts = plan_parts(config, self.rest)
        self.stepper = Stepper(self.model, ranks, self.loop.clip_norm, find_unused=bool(config.phases))
        if found and state:
            self._resume(found, state)
        elif config.init_from:
            self._begin_with(load_checkpoint(config.init_from))

    @property
    def total(self) -> int:
        """Steps of the whole training, phases included."""
        return self.parts[-1].end

    @property
    def out_of_patience(self) -> bool:
        """Whether `patience` validations have brought nothing better."""
        return self.loop.patience is not None and self.best is not None and self.best.misses >= self.loop.patience

    def train(self) -> TrainingReport:
        """Train to the end, or until something ends it.

        Raises:
            TrainingError: a loss that is not finite, too little memory, a disk that is full; what was good is kept.
        """
        forecast = Forecast(self.loop.eval_steps if self.data.dev_ids else None, self.max_minutes)
        reporting = Reporting(self.output_dir, self.ranks, self.progress, self.step, self.loop, forecast)
        self.model.train()
        try:
            with Interrupts(self._tell_interrupt) as interrupts, self.progress.steps(self.total):
                ended = self._until_ended(interrupts, reporting)
                wait_share = reporting.meter.wait_share
                if self.saved_at != self.step:
                    self._save()
                if self.validation_due:
                    self.progress.say(
                        f"Step {self.step:,} is kept without its validation, with which a later run begins"
                    )
        except OSError as error:
            where = error.filename or self.output_dir
            raise TrainingError(f"{where}: {error.strerror or error}; {RESUME}") from error
        except (MemoryError, RuntimeError) as error:
            if not is_short_of_memory(error):
                raise
            raise TrainingError(f"out of memory after step {self.step}: {memory_advice(self.config)}") from error
        finally:
            self._batches = None  # which ends the threads that read ahead
            reporting.close()
        reporting.draw()
        best = None if self.best is None else {"step": self.best.step, **self.best.dev}
        return TrainingReport(
            str(self.output_dir),
            ended,
            self.step,
            self.total,
            self.data.train.epoch,
            best,
            reporting.seconds,
            wait_share,
            memory_bytes(self.ranks.device),
        )

    def _until_ended(self, interrupts: Interrupts, reporting: Reporting) -> Ended:
        """Train and validate, to the end or until something ends it."""
        if self.validation_due and not self._validate(self._part(self.step), interrupts, reporting):
            return "interrupted"
        while self.step < self.total:
            if self.out_of_patience:
                return "early"
            part = self._part(self.step + 1)
            self._train_step(part, reporting)
            stop = self._stop(interrupts, reporting)
            if self.step % self.loop.eval_steps == 0 or self.step == part.end:
                self.validation_due = bool(self.data.dev_ids)
                if not self.validation_due:
                    with reporting.meter.paused():
                        self._save()
                elif stop or not self._validate(part, interrupts, reporting):
                    return stop or "interrupted"
            if stop and self.step < self.total:
                return stop
        return "finished"

    def _part(self, number: int) -> Part:
        """What step `number`, from 1, is of."""
        return next(part for part in self.parts if number <= part.end)

    def _train_step(self, part: Part, reporting: Reporting) -> None:
        if self.step == part.first:
            self._begin(part)
        before = self.data.train.state_dict()
        with self._rescuing(before):
            with reporting.meter.waiting():
                batches, epoch = self._take()
            rate = part.rate(self.loop, self.step)
            step = self.stepper.step(batches, part.weights, rate, lambda: memory_advice(self.config))
        if step.wrong:
            self._stop_at_wrong(step.wrong, before)
        self.step += 1
        if self.average:
            self.average.update()
        reporting.stepped(step, self.step, part)
        if self.step % self.loop.log_steps == 0 or self.step in (1, part.end):
            reporting.trained(step, self.step, self.total, epoch, part, rate)

    def _take(self) -> tuple[list[TrainBatch], int]:
        """The micro-batches of a step, of one epoch, and which it is."""
        for _ in range(2):
            if self._batches is None:
                self._batches = iter(self.data.train)
            epoch = self.data.train.epoch
            if batches := list(islice(self._batches, self.loop.gradient_accumulation_steps)):
                return batches, epoch
            self._batches = None
        raise TrainingError("there is nothing to train on: an epoch has no batch")

    def _begin(self, part: Part) -> None:
        """A fresh optimiser, and a moving average that forgets what was before."""
        self.stepper.optimise(make_optimiser(self.model, self.loop))
        self.average = None if self.loop.ema is None else MovingAverage(self.model, self.loop.ema)
        if len(self.parts) > 1:
            names, steps = " and ".join(part.weights), part.end - part.first
            self.progress.say(f"Part {part.number + 1} of {len(self.parts)}: {names}, {steps:,} steps")

    def _stop(self, interrupts: Interrupts, reporting: Reporting) -> Ended | None:
        """Why all ranks end here: some rank was interrupted, or the first one's time is over."""
        over = self.max_minutes is not None and reporting.seconds >= 60 * self.max_minutes
        interrupted, out_of_time = self.ranks.total([interrupts.met, over and self.ranks.is_main])
        return "interrupted" if interrupted else "minutes" if out_of_time else None

    def _tell_interrupt(self) -> None:
        self.progress.say(
            "Stopping after the step, or the batch of a validation, that runs; all is kept. The same signal again ends it at once"
        )

    def _validate(self, part: Part, interrupts: Interrupts, reporting: Reporting) -> bool:
        """Measure the model, and keep it; what is best is sought in the last part, which text is written in too.

        False: some rank was interrupted, and nothing came of it.
        """
        with reporting.meter.paused():
            begun, epoch = time.monotonic(), self.data.train.epoch
            sample = self.sample if part.final and self.model.writes in part.weights else []

            def given_up() -> bool:
                return any(self.ranks.total([interrupts.met]))

            with self._rescuing(), self._averaged():
                found = validate(
                    self.model, self.data.dev, part.weights, sample, self.ranks, self.config.seed, given_up
                )
            if found is None:
                return False
            self._validated(found, part, epoch, reporting, time.monotonic() - begun)
            return True

    def _validated(self, found: Validation, part: Part, epoch: int, reporting: Reporting, seconds: float) -> None:
        """Tell what a validation found, and keep the model; as the best where it is."""
        dev = {"loss": found.loss, "losses": found.losses, "wer": found.wer, "cer": found.cer}
        measured, by = Best(self.step, dev), self.loop.best
        is_best = part.final and (self.best is None or measured.value(by) < self.best.value(by))
        if is_best:
            self.best = measured
        elif part.final and self.best:
            self.best.misses += 1
        # A run that is killed from here on goes on before this line, and drops it, or behind it.
        reporting.validated(found, self.step, epoch, part, is_best, seconds)
        self.validation_due = False
        self._save(dev, is_best)

    def _averaged(self) -> AbstractContextManager[None]:
        return self.average.in_place() if self.average else nullcontext()

    def _save(
        self, dev: Mapping[str, Any] | None = None, best: bool = False, stream: Mapping[str, Any] | None = None
    ) -> None:
        """Keep the model and all that a later run needs; `stream` is where that one takes its data from."""
        state: dict[str, Any] = {
            "step": self.step,
            "rest": self.rest,
            "epochs": self.loop.epochs,
            "epoch_steps": self.epoch_steps,
            "batches_per_step": self._batches_per_step,
            "world_size": self.ranks.world_size,
            "stream": dict(stream or self.data.train.state_dict()),
            "random": self.ranks.gather(random_state(self.ranks.device)),
            "best": None if self.best is None else asdict(self.best),
            "dev_set": self.dev_set,
            "validation_due": self.validation_due,
            **self.stepper.state_dict(),
        }
        if self.average:
            weights = {name: p.detach() for name, p in trainable_parameters(self.model).items()}
            state |= {"weights": weights, "average": self.average.weights, "updates": self.average.updates}
        if self.ranks.is_main:
            # The average takes the weights' place in memory, which the state's tensors are too: write those as they are now.
            state["weights"] = {name: value.clone() for name, value in state.get("weights", {}).items()}
            with self._averaged():
                save_checkpoint(
                    self.output_dir, self.step, self.config, self.model, self.fingerprints, dev, state, best
                )
        self.ranks.wait()
        self.saved_at = self.step

    def _read(self, found: Checkpoint) -> dict[str, Any]:
        check_fits(found, self.fingerprints)
        check_same_model(found, self.config)
        if other := other_vocabularies(found, self.model):
            raise TrainingError(
                f"{found.folder} cannot be resumed: the texts that are trained on now hold what its vocabulary ({', '.join(other)}) "
                f"lacks: take those of {self.config.data.store} that it was learnt from, or begin anew in another output_dir with "
                f"init_from={found.folder}"
            )
        return found.state()

    @property
    def _batches_per_step(self) -> int:
        return self.ranks.world_size * self.loop.gradient_accumulation_steps

    def _rest_steps(self, state: Mapping[str, Any] | None) -> int:
        """Steps after the phases. Epochs are as many steps as the first one has batches for; where a step takes another number
        of batches than before, or batches are others, what is left is counted anew."""
        loop = self.loop
        if loop.max_steps is not None:
            return loop.max_steps
        if loop.epochs is None:
            raise TrainingError("training: neither max_steps nor epochs is given: say how long to train")
        an_epoch = self.epoch_steps = -(-len(self.data.train) // loop.gradient_accumulation_steps)
        if state is None or state["epochs"] is None:
            return loop.epochs * an_epoch
        done = max(0, state["step"] - sum(phase.steps for phase in self.config.phases))
        left = (state["rest"] - done) * state["batches_per_step"] / self._batches_per_step
        if self.other_plan and state.get("epoch_steps"):
            left = (state["rest"] - done) / state["epoch_steps"] * an_epoch
        return max(done, done + round(left + (loop.epochs - state["epochs"]) * an_epoch))

    def _resume(self, found: Checkpoint, state: Mapping[str, Any]) -> None:
        load_trainable(self.model, {**found.tensors(), **state["weights"]})
        self.step = self.saved_at = state["step"]
        ranks = ""
        if state["world_size"] != self.ranks.world_size:
            ranks = f", on {self.ranks.world_size} ranks after {state['world_size']}: at the same place of the data"
        self.progress.say(f"Going on after step {self.step:,} of {self.total:,} ({found.folder.name}){ranks}")
        self._go_on_with_data(state["stream"])
        self._remember_best(found, state)
        due = state.get("validation_due", False)
        self.validation_due = due and self.step <= self.total and bool(self.data.dev_ids)
        part = next((part for part in self.parts if part.first < self.step <= part.end), None)
        # The state of a part that is over is of no use to the next; its average is what is validated.
        if part and (self.step < part.end or self.validation_due):
            self._begin(part)
            self.stepper.load_state_dict(state)
            if self.average and "average" in state:
                self.average.load(state["average"], state["updates"])
        if self.ranks.rank < len(state["random"]):
            set_random_state(state["random"][self.ranks.rank], self.ranks.device)

    def _go_on_with_data(self, stream: Mapping[str, Any]) -> None:
        """At the next batch; where the batches are others now, at the first one of the epoch that was interrupted."""
        if self.other_plan:
            self.progress.say(
                f"warning: the batches are others than before: epoch {stream['epoch']} begins anew; now against then: {self.other_plan}"
            )
            stream = {**self.data.train.state_dict(), "epoch": stream["epoch"], "batch": 0}
        self.data.train.load_state_dict(stream)

    def _remember_best(self, found: Checkpoint, state: Mapping[str, Any]) -> None:
        """The best so far, by what is asked for now; none where it is not in this folder, or was measured on another dev set."""
        best = state["best"]
        if best is None:
            return
        lost = ""
        if found.folder.parent != self.output_dir.resolve():
            lost = f"what is best so far stays in {found.folder.parent}"
        elif state.get("dev_set", self.dev_set) != self.dev_set:
            lost = "the dev set, or its sample, is another than before"
        if lost:
            self.progress.say(f"warning: {lost}: the best, of step {best['step']:,}, is sought anew")
            return
        misses = best["misses"] if found.config.training.best == self.loop.best else 0
        self.best = Best(best["step"], best["dev"], misses)

    def _begin_with(self, found: Checkpoint) -> None:
        check_fits(found, self.fingerprints, llm=False)
        other = other_vocabularies(found, self.model)
        taken, left = begin_with(self.model, found.tensors(), bool(other))
        if not taken:
            raise TrainingError(
                f"init_from={found.folder}: none of its {len(left)} tensors fits this model by name and shape"
            )
        rest = f"; {len(left)} do not fit, e.g. {left[0]}" if left else ""
        rest += "; these texts have another vocabulary, so words and classes are learnt anew" if other else ""
        self.progress.say(f"Began with {taken} tensors of {found.folder}{rest}")

    @contextmanager
    def _rescuing(self, stream: Mapping[str, Any] | None = None) -> Iterator[None]:
        """Keep the weights as they are where what is done in this block fails; a later run takes its data from `stream` on.

        Several ranks do not fail together, and cannot: what they kept last is what there is.
        """
        try:
            yield
        except Exception:
            if self.ranks.world_size == 1:
                with suppress(TrainingError, MemoryError, RuntimeError):  # the first failure is what is to be told
                    if self._rescue(stream):
                        self.progress.say(f"Step {self.step:,}, the last one that was good, is kept")
            raise

    def _rescue(self, stream: Mapping[str, Any] | None) -> bool:
        """Keep the weights as they are, where they are good and not kept yet; whether they were."""
        tensors = self.model.trainable().values()
        finite = all(bool(torch.isfinite(value).all()) for value in tensors if value.is_floating_point())
        if not self.step or not finite or self.saved_at == self.step:
            return False
        self._save(stream=stream)
        return True

    def _stop_at_wrong(self, wrong: str, before: Mapping[str, Any]) -> None:
        """End with the weights as they were before the step; a later run begins with its batches."""
        self._rescue(before)
        kept = f"step {self.saved_at} is kept" if self.saved_at > 0 else "nothing was kept, there was no good step"
        raise TrainingError(
            f"step {self.step + 1}: {wrong}; the weights are those before it, {kept}: look at these utterances, leave them out with "
            f"data.train_where, or lower training.learning_rate ({self.loop.learning_rate:g}); {RESUME}"
        )
