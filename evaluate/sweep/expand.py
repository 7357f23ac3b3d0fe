"""A sweep's runs: every combination and seed with its resolved configuration, a name and a hash. Nothing is written."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.sweep.grid import Grid, Variant, merged
from encodeonce.evaluate.sweep.trained import digest, open_trained
from encodeonce.store.errors import StoreError
from encodeonce.train.checkpoint import Checkpoint
from encodeonce.train.config import TrainConfig
from encodeonce.train.configure import as_values, load_config
from encodeonce.train.errors import TrainingError

RUN = "run"
"""The axis of runs that are told by themselves."""
HASH_DIGITS = 10
NOT_HASHED = {"": ("output_dir", "resume_from_checkpoint"), "training": ("device", "threads", "tensorboard")}
"""By section, options that say where and how a training runs, and not what comes of it."""


@dataclass(frozen=True)
class Run:
    """A training, or a checkpoint that is there already, evaluated in one way.

    Attributes:
        name: for people; two runs of a sweep have different ones.
        labels: its place on each axis; runs of the same labels differ in their seeds.
        config: of the training, resolved; its `output_dir` is `folder/training`. Of a checkpoint its own, in the sweep's store.
        options: of evaluate-adapter.
        identity: hash of `config`, or of what is in the checkpoint; the folder's name ends with it.
        training: its name; runs that differ in `options` alone share it, with the folder.
        checkpoint: what is evaluated; None: what is trained.
    """

    name: str
    labels: Mapping[str, str]
    seed: int
    config: TrainConfig
    options: Mapping[str, Any]
    identity: str
    training: str
    folder: Path
    checkpoint: Checkpoint | None = None


def expand(grid: Grid) -> list[Run]:
    """All runs of a sweep, seeds innermost.

    Raises:
        EvaluationError: a configuration or a checkpoint is wrong (the run is named), two runs are the same, there is none, or the grid
            says how to train where nothing is trained.
    """
    trainings: dict[str, Run] = {}
    runs: list[Run] = []
    for labels, variants in settings(grid):
        for run in _runs(grid, labels, variants):
            first = trainings.setdefault(run.identity, run)
            runs.append(replace(run, training=first.training, folder=first.folder, config=first.config))
    if not runs:
        raise EvaluationError("exclude leaves nothing of the grid: take some of it away")
    _check_different(runs)
    _check_used(grid, runs)
    return runs


def settings(grid: Grid) -> Iterator[tuple[Mapping[str, str], Sequence[Variant]]]:
    """What is trained with every seed, or evaluated: labels by axis, and the variants that they stand for."""
    if grid.axes:
        for variants in product(*(axis.variants for axis in grid.axes)):
            labels = {axis.name: variant.label for axis, variant in zip(grid.axes, variants, strict=True)}
            if not any(all(labels[axis] in some for axis, some in rule.items()) for rule in grid.exclude):
                yield labels, variants
    for variant in grid.runs:
        yield {RUN: variant.label}, [variant]
    if not grid.axes and not grid.runs:
        yield _alone(grid), []


def identity(config: TrainConfig) -> str:
    """A hash of what a training depends on."""
    values = as_values(config)
    for section, names in NOT_HASHED.items():
        for name in names:
            (values[section] if section else values).pop(name)
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def _check_different(runs: Sequence[Run]) -> None:
    """Refuse two runs that are the same, or that one cannot tell apart."""
    found: dict[tuple[str, ...], Run] = {}
    for run in runs:
        options = json.dumps(run.options, sort_keys=True)
        for key, what in (
            (("run", run.identity, options), "the same configuration"),
            (("name", run.name), "the same name"),
        ):
            if (other := found.setdefault(key, run)) is not run:
                raise EvaluationError(
                    f"{_said(other)} and {_said(run)} have {what}: leave one out, or let something tell them apart"
                )
        other = found.setdefault(("training", run.training), run)
        if other.identity != run.identity:
            raise EvaluationError(
                f"the trainings of {_said(other)} and {_said(run)} have the same name, {run.training}: give one another name"
            )


def _check_used(grid: Grid, runs: Sequence[Run]) -> None:
    """Refuse what is said of trainings where there is none."""
    if any(run.checkpoint is None for run in runs):
        return
    said = {"base": grid.base, "set": grid.overrides, "seeds": grid.seeds != Grid.seeds}
    for what in [*(key for key, value in said.items() if value), *grid.words]:
        raise EvaluationError(f"{what}: nothing is trained, as all runs have a checkpoint: leave it out")


def _runs(grid: Grid, labels: Mapping[str, str], variants: Sequence[Variant]) -> list[Run]:
    """Those of a setting: one with every seed, or with its checkpoint."""
    if any(variant.checkpoint is not None for variant in variants):
        return [_evaluated(grid, labels, variants)]
    return [_trained(grid, labels, variants, seed) for seed in grid.seeds]


def _trained(grid: Grid, labels: Mapping[str, str], variants: Sequence[Variant], seed: int) -> Run:
    name, training = f"{_name(labels)}-seed{seed}", f"{_training(grid, labels)}-seed{seed}"
    try:
        config = load_config(_base(grid, variants), _words(grid, variants, seed))
    except (TrainingError, EvaluationError) as error:
        raise EvaluationError(f"run {name}: {error}") from error
    found = identity(config)
    folder = _folder(Path(grid.output_dir) / "runs", training, found)
    config = replace(config, output_dir=str(folder / "training"), resume_from_checkpoint="auto")
    return Run(name, labels, seed, config, _options(grid, variants), found, training, folder)


def _evaluated(grid: Grid, labels: Mapping[str, str], variants: Sequence[Variant]) -> Run:
    name, training = _name(labels), _training(grid, labels)
    try:
        checkpoint = open_trained(_only_checkpoint(variants), grid.evaluate.checkpoint)
        config = checkpoint.config
        found = digest(checkpoint)[:HASH_DIGITS]
    except (TrainingError, StoreError, EvaluationError) as error:
        raise EvaluationError(f"run {name}: {error}") from error
    config = replace(config, data=replace(config.data, store=grid.store))
    folder = _folder(Path(grid.output_dir) / "runs", training, found)
    return Run(name, labels, config.seed, config, _options(grid, variants), found, training, folder, checkpoint)


def _only_checkpoint(variants: Sequence[Variant]) -> str:
    """The checkpoint of variants of which one has it, and no other says anything of a training."""
    (first, *others) = sorted((one for one in variants if one.trains), key=lambda one: one.checkpoint is None)
    for other in others:
        what = "checkpoint" if other.checkpoint else "base" if other.base else next(iter(other.overrides))
        raise EvaluationError(
            f"{what} of {other.label} has no use with the checkpoint {first.checkpoint}, which is evaluated and not trained: "
            f"exclude it, or say the checkpoint in runs"
        )
    return str(first.checkpoint)


def _options(grid: Grid, variants: Sequence[Variant]) -> Mapping[str, Any]:
    return merged(grid.evaluate.options, *(variant.options for variant in variants))


def _training(grid: Grid, labels: Mapping[str, str]) -> str:
    """The name of a setting without the axes along which evaluations alone differ."""
    others = {axis.name for axis in grid.axes if axis.evaluates}
    return _name({axis: label for axis, label in labels.items() if axis not in others} or _alone(grid))


def _alone(grid: Grid) -> Mapping[str, str]:
    """The labels of the only training."""
    return {RUN: Path(grid.base or grid.name).stem}


def _base(grid: Grid, variants: Sequence[Variant]) -> str:
    """The last variant's that names one, or the grid's."""
    bases = [variant.base for variant in variants if variant.base is not None]
    if not bases and grid.base is None:
        raise EvaluationError(
            "base is not given: name a recipe (train-adapter --list-recipes) or a configuration, or a checkpoint to evaluate"
        )
    return bases[-1] if bases else str(grid.base)


def _words(grid: Grid, variants: Sequence[Variant], seed: int) -> list[str]:
    said = [grid.overrides, *(variant.overrides for variant in variants)]
    words = [_word(key, value) for overrides in said for key, value in overrides.items()]
    return [*words, *grid.words, _word("data.store", grid.store), _word("seed", seed)]


def _word(key: str, value: Any) -> str:
    """key=value, as a command line has it: JSON is YAML."""
    return f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"


def _name(labels: Mapping[str, str]) -> str:
    """Labels, those that are numbers with what they count: hubert-base-queries50."""
    parts = [
        f"{axis.rpartition('.')[2]}{label}"
        if re.fullmatch(r"[-+]?\.?\d[\d.e+-]*|true|false", label, re.IGNORECASE)
        else label
        for axis, label in labels.items()
    ]
    return re.sub(r"[^\w.+]+", "-", "-".join(parts)).strip("-.")[:100] or RUN


def _folder(folder: Path, name: str, found: str) -> Path:
    """Where a run is kept: the folder that ends with its hash, whatever it was called when it was made."""
    made = sorted(folder.glob(f"*-{found}"))
    return made[0] if made else folder / f"{name}-{found}"


def _said(run: Run) -> str:
    labels = ", ".join(f"{axis} {label}" for axis, label in run.labels.items())
    return f"{run.name} ({labels}{', seed ' + str(run.seed) if run.checkpoint is None else ''})"
