"""A sweep before it runs: the commands of each run, checks of every configuration, and what a training would take."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.sweep.expand import Run
from encodeonce.evaluate.sweep.grid import Evaluate
from encodeonce.evaluate.sweep.work import Order, Step
from encodeonce.store.errors import StoreError
from encodeonce.store.objects import store_path
from encodeonce.store.reader import FeatureStore
from encodeonce.train.errors import TrainingError

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


def order_of(run: Run, evaluate: Evaluate, programs: Programs) -> Order:
    """The commands of a run: a training, then an evaluation of each split."""
    from encodeonce.train.configure import to_yaml

    folder = run.folder.absolute()
    train = Step(
        "train",
        (*programs.train, str(run.folder / "config.yaml"), "--json"),
        folder / "train.log",
        folder / "train.json",
    )
    steps = [train, *(_evaluation(run, evaluate, split, programs) for split in evaluate.splits)]
    return Order(run.name, folder, to_yaml(run.config), tuple(steps), Path.cwd())


def results_folder(run: Run, evaluate: Evaluate, split: str) -> Path:
    """Where the evaluation of a split is kept; another way to evaluate has another folder."""
    asked = json.dumps([split, evaluate.checkpoint, evaluate.where, dict(evaluate.options)], sort_keys=True)
    return run.folder / f"{split}-{hashlib.sha256(asked.encode()).hexdigest()[:6]}"


def _evaluation(run: Run, evaluate: Evaluate, split: str, programs: Programs) -> Step:
    folder = results_folder(run, evaluate, split)
    checkpoint = run.folder / "training"
    arguments = [str(checkpoint if evaluate.checkpoint == "best" else checkpoint / "last")]
    arguments += ["--store", run.config.data.store, "--split", split, "--output", str(folder), "--json"]
    arguments += [] if run.config.data.encoder is None else ["--encoder", run.config.data.encoder]
    arguments += [] if evaluate.where is None else ["--where", evaluate.where]
    arguments += flags(evaluate)
    beside = folder.absolute()
    log, output = beside.with_name(f"{beside.name}.log"), beside.with_name(f"{beside.name}.json")
    return Step(f"evaluate {split}", (*programs.evaluate, *arguments), log, output, beside / RESULTS)


def flags(evaluate: Evaluate) -> list[str]:
    """Options of evaluate-adapter as its command line has them: `beams: 4`, `report: false`, a list once for each value."""
    words: list[str] = []
    for key, value in evaluate.options.items():
        name = key.replace("_", "-")
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name}"] if one is True else [f"--no-{name}"] if one is False else [f"--{name}", str(one)]
    return words


def check(runs: Sequence[Run], evaluate: Evaluate) -> None:
    """Refuse what cannot be, before the first training begins: contradictions, splits that are not there.

    Raises:
        EvaluationError: the run is named.
    """
    from encodeonce.train.checks import check_config

    opened: set[tuple[str, str | None, str | None]] = set()
    for run in runs:
        data = run.config.data
        try:
            check_config(run.config)
            for split in (*(data.train or (None,)), *data.dev, *evaluate.splits):
                if (data.store, data.encoder, split) not in opened:
                    opened.add((data.store, data.encoder, split))
                    FeatureStore(store_path(data.store), data.encoder, split)
        except (TrainingError, StoreError) as error:
            raise EvaluationError(f"run {run.name}: {error}") from error


def check_options(evaluate: Evaluate) -> None:
    """Refuse options that evaluate-adapter does not have.

    Raises:
        EvaluationError: what it says of them.
    """
    import click
    from encodeonce.evaluate.cli import evaluate_adapter

    words = [".", "--store", ".", "--split", "any", "--output", "any", *flags(evaluate)]
    try:
        evaluate_adapter.make_context("evaluate-adapter", words)
    except click.ClickException as error:
        raise EvaluationError(f"evaluate.options: {error.format_message()}") from error


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
    return {"name": run.name, **run.labels, "seed": run.seed, "identity": run.identity, "folder": str(run.folder)}
