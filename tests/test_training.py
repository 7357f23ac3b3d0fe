"""The training loop: the same gradient however a batch is cut, going on exactly, and what is kept when something goes wrong."""

import errno
import io
import json
import math
import os
import resource
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jiwer
import pytest
import torch
from encodeonce.store import FeatureStore
from encodeonce.store.errors import StoreError
from encodeonce.train.checkpoint import Fingerprints, check_fits, load_checkpoint, load_trainable, save_checkpoint
from encodeonce.train.config import LoopConfig, Phase
from encodeonce.train.errors import TrainingError
from encodeonce.train.forecast import Forecast
from encodeonce.train.llm.config import LLMConfig
from encodeonce.train.loop import Trainer, TrainingReport
from encodeonce.train.metrics import read_metrics
from encodeonce.train.objectives.config import ContrastiveConfig, MatchingConfig, ObjectivesConfig
from encodeonce.train.optimiser import MovingAverage, learning_rate_factor, parameter_groups
from encodeonce.train.parts import Part
from encodeonce.train.progress import TrainingProgress
from encodeonce.train.randomness import random_state, seed_all, set_random_state
from encodeonce.train.step import Stepper, memory_advice
from encodeonce.train.validation import Validation, pick_sample, validate
from rich.console import Console
from safetensors.torch import load_file
from streams import frames_of, make_store
from torch import multiprocessing
from toy_training import ToyData, ToyModel, ranks_of, text_of, toy_config, toy_model, train_on_a_rank
from transformers import get_cosine_schedule_with_warmup

CPU = torch.device("cpu")
PHASES = (Phase(objectives={"stg": 1.0}, steps=4, learning_rate=1e-2),)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, FeatureStore]:
    folder = tmp_path_factory.mktemp("features")
    train = make_store(folder, frames_of(47, most=120), split="train")
    return train, make_store(folder, frames_of(11, seed=1, most=120), split="dev", prefix="dev")


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes longer than a training here."""
    if "curves" not in request.node.name:
        monkeypatch.setattr("encodeonce.train.reporting.draw_curves", lambda folder: None)


def trainer_of(stores, config, model: Any = None) -> Trainer:
    return Trainer(config, model or toy_model(), ToyData(*stores), ranks_of(config))


def run(stores, config, model: Any = None) -> tuple[TrainingReport, dict[str, torch.Tensor]]:
    trainer = trainer_of(stores, config, model)
    report = trainer.train()
    return report, {name: value.clone() for name, value in trainer.model.trainable().items()}


def assert_same(weights, others) -> None:
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())


class Killed(BaseException):
    pass


def dies_at(passes: int, event) -> Any:
    model = toy_model()
    model.steps_left, model.event = passes, event
    return model


def kill():
    raise Killed


@pytest.mark.parametrize(
    ("options", "phases", "passes"),
    [
        ({}, (), 8),
        ({"gradient_accumulation_steps": 2, "ema": 0.9, "schedule": "tri-stage"}, (), 15),
        ({"eval_steps": 2, "warmup_steps": 2}, PHASES, 3),
        ({"eval_steps": 4, "ema": 0.9}, PHASES, 5),
        ({"max_steps": None, "epochs": 3, "eval_steps": 3, "mixed_precision": "bf16"}, (), 10),
    ],
)
def test_killed_and_resumed_equals_never_interrupted(stores, tmp_path, options, phases, passes):
    _, whole = run(stores, toy_config(tmp_path / "whole", phases, **options))
    with pytest.raises(Killed):
        run(stores, toy_config(tmp_path / "cut", phases, **options), dies_at(passes, kill))
    torch.rand(7)  # whatever the new process draws before it resumes
    report, resumed = run(stores, toy_config(tmp_path / "cut", phases, "auto", **options))
    assert report.ended == "finished"
    assert_same(resumed, whole)
    files = [tmp_path / name / "last" / "adapter.safetensors" for name in ("whole", "cut")]
    assert_same(load_file(files[0]), load_file(files[1]))
    lines = [read_metrics(tmp_path / name) for name in ("whole", "cut")]
    assert [(line["step"], line.get("loss"), line.get("dev")) for line in lines[0]] == [
        (line["step"], line.get("loss"), line.get("dev")) for line in lines[1]
    ]


def test_minutes_and_signals_end_a_run_that_goes_on_to_the_same_weights(stores, tmp_path):
    _, whole = run(stores, toy_config(tmp_path / "whole"))
    report, _ = run(stores, toy_config(tmp_path / "cut", max_minutes=1e-9))
    assert (report.ended, report.steps) == ("minutes", 1)
    interrupted = dies_at(3, lambda: os.kill(os.getpid(), signal.SIGINT))
    report, _ = run(stores, toy_config(tmp_path / "cut", resume="auto"), interrupted)
    assert (report.ended, report.steps) == ("interrupted", 5)
    report, resumed = run(stores, toy_config(tmp_path / "cut", resume="auto"))
    assert (report.ended, report.steps) == ("finished", 12)
    assert_same(resumed, whole)


class StoppedInValidation(ToyModel):
    """It gets a signal at its first batch of a validation that is not the first `validations`."""

    def __init__(self, validations: int, dev_batches: int) -> None:
        super().__init__()
        self.measured, self.stop_at = 0, validations * dev_batches + 1

    def forward(self, outputs, lengths, tokens, active):
        self.measured += not self.training
        if not self.training and self.measured == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(outputs, lengths, tokens, active)


@pytest.mark.parametrize(
    ("options", "phases", "validations", "step"),
    [({}, (), 0, 5), ({"ema": 0.9}, (), 2, 12), ({"eval_steps": 8, "ema": 0.9}, PHASES, 0, 4)],
)
def test_a_signal_ends_a_validation_which_the_later_run_begins_with(
    stores, tmp_path, options, phases, validations, step, capsys
):
    _, whole = run(stores, toy_config(tmp_path / "whole", phases, **options))
    dev_batches = len(list(ToyData(*stores).dev))
    assert dev_batches > 1
    model: Any = StoppedInValidation(validations, dev_batches)
    config = toy_config(tmp_path / "cut", phases, **options)
    report = Trainer(config, model, ToyData(*stores), ranks_of(config), TrainingProgress()).train()
    assert (report.ended, report.steps) == ("interrupted", step)
    assert model.measured == model.stop_at, "no batch after the signal"
    said = capsys.readouterr().err
    assert "Stopping after the step, or the batch of a validation, that runs" in said
    assert f"Step {step} is kept without its validation" in said
    assert [line["step"] for line in read_metrics(tmp_path / "cut") if "dev" in line and line["step"] == step] == []
    _, resumed = run(stores, toy_config(tmp_path / "cut", phases, "auto", **options))
    assert_same(resumed, whole)
    for link in ("last", "best"):
        files = [tmp_path / name / link / "adapter.safetensors" for name in ("whole", "cut")]
        assert_same(load_file(files[0]), load_file(files[1]))
    told = ("step", "epoch", "part", "loss", "dev", "wer", "best")
    lines = [[[line.get(key) for key in told] for line in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_a_stop_before_a_validation_leaves_that_to_the_later_run(stores, tmp_path):
    _, whole = run(stores, toy_config(tmp_path / "whole", eval_steps=1, max_steps=3))
    report, _ = run(stores, toy_config(tmp_path / "cut", eval_steps=1, max_steps=3, max_minutes=1e-9))
    assert (report.ended, report.steps, report.best) == ("minutes", 1, None)
    _, resumed = run(stores, toy_config(tmp_path / "cut", resume="auto", eval_steps=1, max_steps=3))
    assert_same(resumed, whole)
    lines = [[(x["step"], x.get("dev")) for x in read_metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert lines[0] == lines[1]


def test_features_that_cannot_be_read_any_more_cost_no_step(stores, tmp_path, monkeypatch):
    _, whole = run(stores, toy_config(tmp_path / "whole"))
    taken: list[int] = []

    def take(batches, count):
        taken.append(count)
        if len(taken) == 4:
            raise StoreError("the shard is gone")
        return islice(batches, count)

    with monkeypatch.context() as patched:
        patched.setattr("encodeonce.train.loop.islice", take)
        with pytest.raises(StoreError, match="the shard is gone"):
            run(stores, toy_config(tmp_path / "cut"))
    assert load_checkpoint(tmp_path / "cut" / "last").step == 3
    _, resumed = run(stores, toy_config(tmp_path / "cut", resume="auto"))
    assert_same(resumed, whole)


def test_a_training_that_stands_is_not_written_over(stores, tmp_path):
    for name in ("out", "other"):
        run(stores, toy_config(tmp_path / name, max_steps=2))
    for resume in (None, str(tmp_path / "other" / "last")):
        with pytest.raises(TrainingError, match="holds a training at step-000002"):
            trainer_of(stores, toy_config(tmp_path / "out", resume=resume))
    trainer_of(stores, toy_config(tmp_path / "out", resume=str(tmp_path / "out" / "last")))


def test_a_run_that_is_killed_while_it_writes_a_checkpoint_loses_no_line(stores, tmp_path, monkeypatch):
    _, whole = run(stores, toy_config(tmp_path / "whole"))
    for moment in ("before", "behind"):
        saves = []

        def save(*arguments, moment=moment, saves=saves):
            saves.append(arguments[1])
            if moment == "behind" or len(saves) == 1:
                save_checkpoint(*arguments)
            if len(saves) == 2:
                raise Killed

        with monkeypatch.context() as patched:
            patched.setattr("encodeonce.train.loop.save_checkpoint", save)
            with pytest.raises(Killed):
                run(stores, toy_config(tmp_path / moment))
        assert saves == [5, 10]
        _, resumed = run(stores, toy_config(tmp_path / moment, resume="auto"))
        assert_same(resumed, whole)
        lines = [[(x["step"], "dev" in x) for x in read_metrics(tmp_path / name)] for name in ("whole", moment)]
        assert lines[0] == lines[1]


def test_of_equal_word_error_rates_the_lower_loss_is_better(stores, tmp_path, monkeypatch):
    found = iter([(0.5, 1.0), (0.5, 2.0), (0.5, 0.9), (0.4, 3.0), (0.4, math.nan)])

    def told(*arguments):
        wer, loss = next(found)
        return Validation({"ctc": loss, "stg": loss}, loss, wer, wer, ())

    monkeypatch.setattr("encodeonce.train.loop.validate", told)
    report, _ = run(stores, toy_config(tmp_path / "out", max_steps=5, eval_steps=1))
    lines = [line for line in read_metrics(tmp_path / "out") if "wer" in line]
    assert [line["best"] for line in lines] == [True, False, True, True, False]
    assert (report.best or {})["step"] == 4
    assert "NaN" not in (tmp_path / "out" / "metrics.jsonl").read_text()


def told_by(stores, monkeypatch, config, *found: tuple[float, float]) -> tuple[Trainer, list[bool], str]:
    """A training whose validations find these word error rates and losses; which of them are the best, and what it says."""
    values, said = iter(found), io.StringIO()

    def told(*arguments):
        wer, loss = next(values)
        return Validation({"ctc": loss, "stg": loss}, loss, wer, wer, ())

    monkeypatch.setattr("encodeonce.train.loop.validate", told)
    progress = TrainingProgress()
    progress.console = Console(file=said, soft_wrap=True)
    trainer = Trainer(config, toy_model(), ToyData(*stores), ranks_of(config), progress)
    first = trainer.step
    trainer.train()
    lines = [line for line in read_metrics(Path(config.output_dir)) if "wer" in line and line["step"] > first]
    return trainer, [line["best"] for line in lines], said.getvalue()


def test_what_is_best_so_far_is_told_by_what_is_asked_for_now(stores, tmp_path, monkeypatch):
    begun = toy_config(tmp_path / "out", max_steps=2, eval_steps=1, best="wer")
    assert told_by(stores, monkeypatch, begun, (0.5, 1.0), (0.6, 0.9))[1] == [True, False]
    config = toy_config(tmp_path / "out", resume="auto", max_steps=4, eval_steps=1, best="loss", patience=2)
    trainer, best, said = told_by(stores, monkeypatch, config, (0.7, 0.8), (0.4, 1.1))
    assert best == [True, False], "0.8 is below 1.0, whatever the word error rates"
    assert trainer.best is not None
    assert (trainer.best.step, trainer.best.misses) == (3, 1)
    assert "sought anew" not in said


def test_what_was_measured_on_another_dev_set_is_no_best_any_more(stores, tmp_path, monkeypatch):
    begun = toy_config(tmp_path / "out", max_steps=1, eval_steps=1)
    told_by(stores, monkeypatch, begun, (0.1, 0.1))
    config = toy_config(tmp_path / "out", resume="auto", max_steps=3, eval_steps=1, eval_utterances=4)
    _, best, said = told_by(stores, monkeypatch, config, (0.5, 1.0), (0.6, 1.0))
    assert best == [True, False]
    assert "the dev set, or its sample, is another than before: the best, of step 1, is sought anew" in said


def test_the_best_of_another_folder_is_no_best_of_this_one(stores, tmp_path, monkeypatch):
    told_by(stores, monkeypatch, toy_config(tmp_path / "old", max_steps=1, eval_steps=1), (0.1, 0.1))
    config = toy_config(tmp_path / "new", resume=str(tmp_path / "old" / "last"), max_steps=3, eval_steps=1)
    trainer, best, said = told_by(stores, monkeypatch, config, (0.5, 1.0), (0.6, 1.0))
    assert best == [True, False]
    assert trainer.best is not None
    assert trainer.best.step == 2
    assert load_checkpoint(tmp_path / "new" / "best").step == 2
    assert f"stays in {tmp_path / 'old'}: the best, of step 1, is sought anew" in said


def test_other_batches_begin_the_epoch_anew_with_all_else_kept(stores, tmp_path):
    options: dict[str, Any] = {"max_steps": None, "epochs": 3, "eval_steps": 100}
    data = ToyData(*stores)
    epoch = len(data.train)
    assert epoch > 2
    interrupted = dies_at(epoch + 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    report, weights = run(stores, toy_config(tmp_path / "out", **options), interrupted)
    assert (report.steps, report.epoch) == (epoch + 3, 1)
    config, said = toy_config(tmp_path / "out", resume="auto", **options), io.StringIO()
    data.train.stream = stores[0].stream(frames_per_batch=350, dtype="float32", columns=())
    progress = TrainingProgress()
    progress.console = Console(file=said, soft_wrap=True)
    trainer = Trainer(config, toy_model(), data, ranks_of(config), progress)
    told = (
        "the batches are others than before: epoch 1 begins anew; now against then: frames_per_batch: 350 against 700"
    )
    assert told in said.getvalue()
    state = data.train.state_dict()
    assert (trainer.step, state["epoch"], state["batch"]) == (epoch + 3, 1, 0)
    assert_same(dict(trainer.model.trainable()), weights)
    assert trainer.stepper.optimiser.state_dict()["state"], "the optimiser's moments are kept"
    now = len(data.train)
    assert now > 1.5 * epoch
    assert trainer.total == epoch + 3 + round((2 * epoch - 3) / epoch * now), "as many epochs as were left"
    assert trainer.train().ended == "finished"


def test_the_time_is_told_after_a_few_steps_and_again_with_the_first_validation():
    part = Part(0, 0, 100, {"ctc": 1.0}, 0.1, final=True)
    forecast = Forecast(eval_steps=40, max_minutes=None)
    told = [forecast.stepped(step, part, in_steps=5 + 0.6 * step, in_all=0) for step in range(1, 41)]
    assert (
        [line for line in told if line] == [told[10]] == ["Time: about 1 min 00 s for 100 steps, beside 3 validations"]
    )
    assert forecast.validated(20.0) == "Time: about 2 min 00 s for 100 steps, 3 validations of 20 s included"
    assert forecast.validated(20.0) is None
    later = Part(1, 100, 200, {"ctc": 1.0}, 0.1, final=True)
    resumed = Forecast(eval_steps=None, max_minutes=2)
    slow = [resumed.stepped(step, later, in_steps=step * 6.0, in_all=0) for step in range(151, 158)]
    limit = "Time: about 5 min 00 s for 50 steps; training.max_minutes=2 ends it near step 170"
    assert slow == [None, None, None, None, limit, None, None], "after 20 seconds"


def test_two_ranks_equal_one_with_twice_the_batches(stores, tmp_path, unused_port):
    arguments = (unused_port, str(tmp_path), str(stores[0].path), PHASES)
    multiprocessing.spawn(train_on_a_rank, arguments, nprocs=2)
    config = toy_config(tmp_path / "one", PHASES, gradient_accumulation_steps=2)
    _, one = run(stores, config, toy_model(dropout=0))
    two = load_file(tmp_path / "two" / "last" / "adapter.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], rtol=0, atol=1e-5)
    lines = [[line for line in read_metrics(tmp_path / name) if "dev" in line] for name in ("one", "two")]
    for mine, theirs in zip(*lines, strict=True):
        assert mine["dev"] == pytest.approx(theirs["dev"], abs=1e-5)
        assert mine["wer"] == theirs["wer"]
    trainer = trainer_of(stores, toy_config(tmp_path / "two", PHASES, "auto", max_steps=15), toy_model(dropout=0))
    assert trainer.train().steps == 19  # what two ranks began, one goes on with


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_step_has_the_gradient_of_its_whole_batch(stores, tmp_path):
    config = toy_config(tmp_path / "out", gradient_accumulation_steps=3, clip_norm=1e9)
    model, ranks = toy_model(dropout=0), ranks_of(config)
    batches = [batch for _, batch in zip(range(3), ToyData(*stores).train, strict=False)]
    stepper = Stepper(model, ranks, 1e9, False)
    stepper.optimise(torch.optim.SGD(model.parameters(), lr=0.0))
    step = stepper.step(batches, {"ctc": 1.0, "stg": 0.5}, 0.1, str)
    count = sum(len(text_of(name).split()) for batch in batches for name in batch.ids)
    before = {name: value.clone() for name, value in toy_model(dropout=0).trainable().items()}
    reference, loss = toy_model(dropout=0), torch.zeros(())
    for batch in batches:
        found = reference(batch.outputs, batch.lengths, batch.tokens, ["ctc", "stg"])
        loss = loss + found["ctc"] / count + 0.5 * found["stg"] / sum(len(b) for b in batches)
    loss.backward()
    assert step.loss({"ctc": 1.0, "stg": 0.5}) == pytest.approx(loss.item(), abs=1e-5)
    for name, parameter in reference.named_parameters():
        if (gradient := parameter.grad) is not None:
            torch.testing.assert_close(dict(model.named_parameters())[name], before[name] - 0.1 * gradient)


def test_gradients_reach_what_is_trained_and_nothing_else(stores, tmp_path):
    model = toy_model()
    frozen = model.frozen.weight.clone()
    before = {name: value.clone() for name, value in model.trainable().items()}
    _, after = run(stores, toy_config(tmp_path / "out"), model)
    assert torch.equal(model.frozen.weight, frozen)
    assert all(not torch.equal(value, after[name]) for name, value in before.items())
    kept = load_file(tmp_path / "out" / "last" / "adapter.safetensors")
    assert kept.keys() == before.keys()


def test_schedules_are_those_of_transformers_and_fairseq():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimiser, 10, 100)
    config = LoopConfig(warmup_steps=10)
    for step in range(100):
        expected = (step + 1) / 10 if step < 10 else theirs.get_last_lr()[0]  # theirs begins at 0
        assert learning_rate_factor(config, step, 100) == pytest.approx(expected)
        optimiser.step()
        theirs.step()
    # fairseq/optim/lr_scheduler/tri_stage_lr_scheduler.py with phase_ratio 0.1, 0.4, 0.5
    tri, peak, decay = LoopConfig(schedule="tri-stage"), 1.0, -math.log(0.01) / 50
    for step in range(110):
        if step < 10:
            expected = 0.01 + (peak - 0.01) / 10 * step
        elif step < 50:
            expected = peak
        else:
            expected = peak * math.exp(-decay * (step - 50)) if step <= 100 else 0.01
        assert learning_rate_factor(tri, step, 100) == pytest.approx(expected)
    assert learning_rate_factor(LoopConfig(schedule="constant", warmup_steps=4), 9, 10) == 1
    assert learning_rate_factor(LoopConfig(final_learning_rate=0.1), 100, 100) == pytest.approx(0.1)


def test_matrices_decay_and_vectors_do_not():
    decayed, spared = parameter_groups(toy_model(), 0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert all(p.dim() >= 2 for p in decayed["params"])
    assert all(p.dim() < 2 for p in spared["params"])
    assert len(decayed["params"]) + len(spared["params"]) == len(toy_model().trainable())


def test_the_moving_average_is_the_formula_and_gives_the_weights_back():
    model = toy_model()
    average = MovingAverage(model, 0.5)
    expected = model.entry.weight.detach().clone()
    for number in range(1, 6):
        torch.nn.init.normal_(model.entry.weight)
        average.update()
        decay = min(0.5, (1 + number) / (10 + number))
        expected = decay * expected + (1 - decay) * model.entry.weight.detach()
    own = model.entry.weight.detach().clone()
    with average.in_place():
        torch.testing.assert_close(model.entry.weight.detach(), expected)
    assert torch.equal(model.entry.weight, own)


def test_random_states_come_back():
    import random

    import numpy as np

    seed_all(5)
    state = random_state(CPU)
    drawn = torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()
    set_random_state(state, CPU)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == drawn


def test_a_loss_that_is_not_finite_stops_with_the_last_good_weights(stores, tmp_path):
    model = dies_at(7, lambda: model.entry.bias.register_hook(lambda gradient: gradient * float("nan")))
    with pytest.raises(
        TrainingError, match=r"step 8: the gradient's norm is nan, in a batch of utt-\d+.*step 7 is kept"
    ):
        run(stores, toy_config(tmp_path / "out"), model)
    kept = load_checkpoint(tmp_path / "out" / "last")
    assert kept.step == 7
    _, good = run(stores, toy_config(tmp_path / "good", max_minutes=None))
    _, resumed = run(stores, toy_config(tmp_path / "out", resume="auto"))
    assert all(bool(torch.isfinite(value).all()) for value in resumed.values())
    assert good.keys() == resumed.keys()


def test_a_loss_of_nan_names_the_batch(stores, tmp_path):
    longest = int(stores[0].frames.argmax())

    class Broken(ToyModel):
        def forward(self, outputs, lengths, tokens, active):
            found = super().forward(outputs, lengths, tokens, active)
            return {
                name: value * (float("nan") if lengths.max() == stores[0].frames[longest] else 1)
                for name, value in found.items()
            }

    broken: Any = Broken()
    with pytest.raises(TrainingError, match="the loss of stg and ctc is nan, in a batch of utt") as caught:
        run(stores, toy_config(tmp_path / "out", max_steps=50, gradient_accumulation_steps=2), broken)
    assert stores[0].id(longest) in str(caught.value) or " more" in str(caught.value)


def test_too_little_memory_says_which_knob(stores, tmp_path):
    def exhaust():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(
        TrainingError, match=r"out of memory at a batch of \d+ utterances.*data.frames_per_batch \(40000\)"
    ):
        run(stores, toy_config(tmp_path / "out"), dies_at(2, exhaust))
    assert load_checkpoint(tmp_path / "out" / "last").step == 2, "the last good step"


def test_the_advice_of_memory_says_what_else_changes(tmp_path):
    config = toy_config(tmp_path / "out")
    plain = memory_advice(config)
    assert "which trains the same, or set training.gradient_checkpointing=true; resume" in plain
    assert "llm" not in plain
    contrast = replace(config, objectives=ObjectivesConfig(stc=ContrastiveConfig(), stm=MatchingConfig()))
    told = memory_advice(contrast)
    assert told.startswith("set training.gradient_checkpointing=true, or lower data.frames_per_batch")
    assert "which leaves stc and stm fewer candidates (objectives.stc.queue" in told
    assert "trains the same" not in told
    quantised = memory_advice(replace(config, llm=LLMConfig(model="owner/name")))
    assert f"in another output_dir take llm.quantise=4bit, beginning with init_from={tmp_path / 'out'}" in quantised
    for llm in (LLMConfig(model="owner/name", quantise="4bit"), LLMConfig(model="x.gguf")):
        assert memory_advice(replace(config, llm=llm)) == plain


def test_too_little_memory_for_features_or_validation_says_it_too(stores, tmp_path, monkeypatch):
    def exhaust(*arguments):
        raise MemoryError("Unable to allocate 9 GiB")

    for number, place in enumerate(("encodeonce.train.loop.validate", "encodeonce.train.loop.islice")):
        with monkeypatch.context() as patched:
            patched.setattr(place, exhaust)
            with pytest.raises(TrainingError, match=r"out of memory after step \d+: lower data.frames_per_batch"):
                run(stores, toy_config(tmp_path / str(number)))


def test_a_full_disk_leaves_the_checkpoint_before_it_whole(stores, tmp_path):
    run(stores, toy_config(tmp_path / "out", max_steps=5, log_steps=100))
    before = {p.name: p.read_bytes() for p in (tmp_path / "out" / "last").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (4_000, 20_000):  # less than the weights; more than those, less than the state
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(
                TrainingError,
                match=r"cannot write the checkpoint of step 10 in .*: no space left on .*; step-000005 stands whole: free space",
            ):
                run(stores, toy_config(tmp_path / "out", resume="auto", log_steps=100))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert {p.name: p.read_bytes() for p in (tmp_path / "out" / "last").iterdir()} == before
    report, _ = run(stores, toy_config(tmp_path / "out", resume="auto", log_steps=100))
    assert report.steps == 12


def test_a_folder_that_cannot_be_written_is_told_as_what_it_is(stores, tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("encodeonce.train.checkpoint.fsync_path", refused)
    with pytest.raises(
        TrainingError, match="Permission denied; there was none before it: mend that, and go on"
    ) as caught:
        run(stores, toy_config(tmp_path / "out", max_steps=1))
    assert "free space" not in str(caught.value)


def test_best_and_last_are_kept_and_nothing_else(stores, tmp_path):
    out = tmp_path / "out"
    copies = {"step-000010-kept", "step-notes"}
    for name in copies:
        (out / name).mkdir(parents=True)
    report, _ = run(stores, toy_config(out, max_steps=300, eval_steps=10, best="loss", patience=2, learning_rate=1e-2))
    assert report.ended == "early"
    assert report.best
    assert report.best["step"] == report.steps - 20
    losses = {line["step"]: line["dev_loss"] for line in read_metrics(out) if "dev" in line}
    assert min(losses, key=losses.__getitem__) == report.best["step"]
    folders = {path.name for path in out.glob("*step-*")}
    assert folders == {os.readlink(out / "best"), os.readlink(out / "last"), *copies}
    assert not (out / "best" / "state.pt").exists()
    assert (out / "last" / "state.pt").exists()
    with pytest.raises(TrainingError, match=r"holds no state.pt"):
        trainer_of(stores, toy_config(out, resume=str(out / "best")))
    model = toy_model()
    load_trainable(model, load_checkpoint(out).tensors())
    found = validate(model, ToyData(*stores).dev, {"ctc": 1.0, "stg": 0.5}, [], ranks_of(toy_config(out)), 0)
    assert found is not None
    assert found.loss == pytest.approx(report.best["loss"], abs=1e-6)
    assert run(stores, toy_config(out, max_steps=300, patience=2, resume="auto"))[0].ended == "early"


def test_a_checkpoint_of_other_features_or_another_llm_is_refused(stores, tmp_path):
    run(stores, toy_config(tmp_path / "out", max_steps=1))
    found = load_checkpoint(tmp_path / "out")
    ours = found.fingerprints
    check_fits(found, ours)
    other = Fingerprints("moonshine-tiny", "99aa", ours.outputs, "llm-1", ours.encodeonce)
    differing = f"encoder moonshine-tiny against toy; features 99aa against {ours.features}; llm llm-1 against None"
    with pytest.raises(TrainingError, match=differing):
        check_fits(found, other)
    check_fits(found, Fingerprints(ours.encoder, ours.features, ours.outputs, "llm-1", "9.9"), llm=False)
    config = toy_config(tmp_path / "out", resume="auto")
    config = replace(config, objectives=replace(config.objectives, stg=None))
    with pytest.raises(TrainingError, match=r"objectives.stg.weight=None against 0.5"):
        trainer_of(stores, config)


def test_a_training_begins_with_what_fits_of_another(stores, tmp_path):
    _, first = run(stores, toy_config(tmp_path / "first", max_steps=3))
    model = toy_model()
    del model.objectives["stg"]
    trainer_of(stores, replace(toy_config(tmp_path / "second"), init_from=str(tmp_path / "first")), model)
    assert all(torch.equal(value, first[name]) for name, value in model.trainable().items())


def test_validation_is_that_of_every_utterance_alone(stores, tmp_path):
    model, ranks = toy_model(), ranks_of(toy_config(tmp_path))
    data = ToyData(*stores)
    sample = pick_sample(data.dev_ids, 5, seed=3)
    before = torch.get_rng_state()
    found = validate(model, data.dev, {"ctc": 1.0, "stg": 0.5}, sample, ranks, 0)
    assert found is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    model.eval()
    words, first, written = [], [], {}
    for batch in ToyData(*stores).dev:
        for row, name in enumerate(batch.ids):
            length = batch.lengths[row : row + 1]
            alone = [batch.outputs[0][row : row + 1, : int(length)]]
            tokens = type(batch.tokens["ctc"]).of(
                [[int(i) for i in batch.tokens["ctc"].ids[row, : batch.tokens["ctc"].lengths[row]]]]
            )
            losses = model(alone, length, {"ctc": tokens, "stg": tokens}, ["ctc", "stg"])
            words.append((float(losses["ctc"].detach()), int(tokens.lengths)))
            first.append(float(losses["stg"].detach()))
            written[name] = model.transcribe(alone, length)[0]
    assert found.losses["ctc"] == pytest.approx(sum(w for w, _ in words) / sum(n for _, n in words), abs=1e-5)
    assert found.losses["stg"] == pytest.approx(sum(first) / len(first), abs=1e-5)
    said = [text_of(name) for name in sample]
    assert found.wer == pytest.approx(jiwer.wer(said, [written[name] for name in sample]))
    assert found.cer == pytest.approx(jiwer.cer(said, [written[name] for name in sample]))
    assert [example.id for example in found.examples] == sample[:3]


def test_metrics_curves_and_tensorboard_are_written(stores, tmp_path):
    out = tmp_path / "out"
    report, _ = run(stores, toy_config(out, max_steps=10, tensorboard=True))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "losses" in line]
    assert [line["step"] for line in trained] == list(range(1, 11))
    assert trained[-1]["losses"]["ctc"] < trained[0]["losses"]["ctc"]
    for line in trained:
        assert line["frames_per_second"] > 0
        assert line["tokens_per_second"] > 0
        assert 0 <= line["wait_share"] <= 1
        assert line["memory_bytes"] > 10**7
    assert [line["step"] for line in lines if "dev" in line] == [5, 10]
    assert (out / "curves.svg").read_text().startswith("<?xml")
    assert (out / "curves.png").stat().st_size > 1000
    assert list((out / "tensorboard").iterdir())
    assert 0 <= report.wait_share < 1
