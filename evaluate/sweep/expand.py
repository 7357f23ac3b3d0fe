"""A sweep's runs: every combination and seed with its resolved configuration, a name and a hash. Pure."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.sweep.grid import Grid, Variant
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
    """One training.

    Attributes:
        name: for people; two runs of a sweep have different ones.
        labels: its place on each axis; runs of the same labels differ in their seeds.
        config: resolved; its `output_dir` is `folder/training`.
        identity: hash of `config`; the folder's name ends with it.
    """

    name: str
    labels: Mapping[str, str]
    seed: int
    config: TrainConfig
    identity: str
    folder: Path


def expand(grid: Grid) -> list[Run]:
    """All runs of a sweep, seeds innermost.

    Raises:
        EvaluationError: a configuration is wrong (the run is named), two runs are the same, or there is none.
    """
    runs = [_run(grid, labels, variants, seed) for labels, variants in settings(grid) for seed in grid.seeds]
    if not runs:
        raise EvaluationError("exclude leaves nothing of the grid: take some of it away")
    for key, what in (("identity", "the same configuration"), ("name", "the same name")):
        seen: dict[str, Run] = {}
        for run in runs:
            other = seen.setdefault(getattr(run, key), run)
            if other is not run:
                raise EvaluationError(
                    f"{_said(other)} and {_said(run)} have {what}: leave one out, or let something tell them apart"
                )
    return runs


def settings(grid: Grid) -> Iterator[tuple[Mapping[str, str], Sequence[Variant]]]:
    """What is trained with every seed: labels by axis, and the variants that they stand for."""
    if grid.axes:
        for variants in product(*(axis.variants for axis in grid.axes)):
            labels = {axis.name: variant.label for axis, variant in zip(grid.axes, variants, strict=True)}
            if not any(all(labels[axis] in some for axis, some in rule.items()) for rule in grid.exclude):
                yield labels, variants
    for variant in grid.runs:
        yield {RUN: variant.label}, [variant]
    if not grid.axes and not grid.runs:
        yield {RUN: Path(grid.base or grid.name).stem}, []


def identity(config: TrainConfig) -> str:
    """A hash of what a training depends on."""
    values = as_values(config)
    for section, names in NOT_HASHED.items():
        for name in names:
            (values[section] if section else values).pop(name)
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def _run(grid: Grid, labels: Mapping[str, str], variants: Sequence[Variant], seed: int) -> Run:
    name = f"{_name(labels)}-seed{seed}"
    try:
        config = load_config(_base(grid, variants), _words(grid, variants, seed))
    except (TrainingError, EvaluationError) as error:
        raise EvaluationError(f"run {name}: {error}") from error
    found = identity(config)
    folder = _folder(Path(grid.output_dir) / "runs", name, found)
    config = replace(config, output_dir=str(folder / "training"), resume_from_checkpoint="auto")
    return Run(name, labels, seed, config, found, folder)


def _base(grid: Grid, variants: Sequence[Variant]) -> str:
    """The last variant's that names one, or the grid's."""
    bases = [variant.base for variant in variants if variant.base is not None]
    if not bases and grid.base is None:
        raise EvaluationError("base is not given: name a recipe (train-adapter --list-recipes) or a configuration")
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
    return f"{run.name} ({labels}, seed {run.seed})"
