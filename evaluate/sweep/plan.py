"""A sweep before it runs: the commands of each run, and what a training would take."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encodeonce.evaluate.sweep.expand import Run
from encodeonce.evaluate.sweep.grid import Evaluate
from encodeonce.evaluate.sweep.work import TRAIN, Order, Step

RESULTS = "results.json"


@dataclass(frozen=True)
class Programs:
    """What is run, as arguments of Python."""

    train: tuple[str, ...] = ("-m", "encodeonce.train.cli")
    evaluate: tuple[str, ...] = ("-m", "encodeonce.evaluate.cli")


OURS = Programs()


@dataclass(frozen=True)
class Estimated:
    """What a training would take: parameters that are trained, bytes, optimiser steps."""

    parameters: int
    memory: int
    steps: int
    utterances: int


def orders_of(runs: Sequence[Run], evaluate: Evaluate, programs: Programs) -> list[Order]:
    """The commands of all runs; those that share a training are one order, so that it is trained once."""
    trainings: dict[str, list[Run]] = {}
    for run in runs:
        trainings.setdefault(run.training, []).append(run)
    return [_order(training, evaluate, programs) for training in trainings.values()]


def results_folder(run: Run, evaluate: Evaluate, split: str) -> Path:
    """Where the evaluation of a split is kept; another way to evaluate has another folder."""
    asked = json.dumps([split, evaluate.checkpoint, evaluate.where, dict(run.options)], sort_keys=True)
    return run.folder / f"{split}-{hashlib.sha256(asked.encode()).hexdigest()[:6]}"


def log_of(results: Path) -> Path:
    """What evaluate-adapter writes to stderr lies beside its folder."""
    return results.with_name(f"{results.name}.log")


def flags(options: Mapping[str, Any]) -> list[str]:
    """Options of evaluate-adapter as its command line has them: `beams: 4`, `report: false`, a list once for each value."""
    words: list[str] = []
    for key, value in options.items():
        name = key.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name}"] if one is True else [f"--no-{name}"] if one is False else [f"--{name}", str(one)]
    return words


def _order(runs: Sequence[Run], evaluate: Evaluate, programs: Programs) -> Order:
    """A training where there is one to do, then every evaluation of each split."""
    from encodeonce.train.configure import to_yaml

    first, shared = runs[0], len(runs) > 1
    steps = [] if first.checkpoint else [_training(first, programs)]
    steps += [_evaluation(run, evaluate, split, programs, shared) for run in runs for split in evaluate.splits]
    return Order(first.training, first.folder.absolute(), to_yaml(first.config), tuple(steps), Path.cwd())


def _training(run: Run, programs: Programs) -> Step:
    folder = run.folder.absolute()
    words = (*programs.train, str(run.folder / "config.yaml"), "--json")
    return Step(TRAIN, words, folder / "train.log", folder / "train.json")


def _evaluation(run: Run, evaluate: Evaluate, split: str, programs: Programs, shared: bool) -> Step:
    folder, training = results_folder(run, evaluate, split), run.folder / "training"
    arguments = ["--store", run.config.data.store, "--split", split, "--output", str(folder), "--json"]
    if run.checkpoint is not None:
        checkpoint = run.checkpoint.folder  # knows the features it was trained on
    else:
        checkpoint = training if evaluate.checkpoint == "best" else training / "last"
        arguments += [] if run.config.data.encoder is None else ["--encoder", run.config.data.encoder]
    arguments += [] if evaluate.where is None else ["--where", evaluate.where]
    arguments += flags(run.options)
    beside = folder.absolute()
    name = f"evaluate {split}{' of ' + run.name if shared else ''}"
    output = beside.with_name(f"{beside.name}.json")
    return Step(name, (*programs.evaluate, str(checkpoint), *arguments), log_of(beside), output, beside / RESULTS)


def estimated(run: Run) -> Estimated:
    """What a training would take, told from its configuration and the store.

    Raises:
        TrainingError, StoreError: it cannot be trained.
    """
    from encodeonce.train.progress import TrainingProgress
    from encodeonce.train.run import plan_training

    found, loop = plan_training(run.config, TrainingProgress(quiet=True)), run.config.training
    an_epoch = -(-found.epoch_batches // loop.gradient_accumulation_steps)
    steps = (loop.epochs or 0) * an_epoch if loop.max_steps is None else loop.max_steps
    return Estimated(
        parameters=sum(found.estimate.trained.values()),
        memory=found.estimate.memory.total,
        steps=steps + sum(phase.steps for phase in run.config.phases),
        utterances=len(found.corpus.train),
    )


def as_object(run: Run) -> dict[str, Any]:
    """A run, for --json."""
    return {
        "name": run.name,
        **run.labels,
        "seed": run.seed,
        "identity": run.identity,
        "folder": str(run.folder),
        "checkpoint": None if run.checkpoint is None else str(run.checkpoint.folder),
        "evaluate": dict(run.options),
    }
