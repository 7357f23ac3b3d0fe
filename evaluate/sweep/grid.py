"""A sweep as its file says it: a base, what varies, what is measured. Parsed into frozen dataclasses; what is not known is refused."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from encodeonce.evaluate.errors import EvaluationError
from encodeonce.evaluate.sweep.values import check_known, mapping, once, text, texts, whole
from encodeonce.train.configure import near, override, read_yaml

KEYS = ("store", "output_dir", "base", "set", "evaluate", "grid", "exclude", "runs", "seeds")
PATHS = {"encoder": "data.encoder", "queries": "adapter.queries"}
"""Axes that have a shorter name than the option they set."""
OWNED = {
    "output_dir": "give output_dir of the grid",
    "seed": "give seeds",
    "data.store": "give store",
    "resume_from_checkpoint": "a run that was killed goes on by itself",
}
"""Options of a training that a sweep sets."""
OWNED_OPTIONS = ("store", "encoder", "split", "where", "output", "json", "quiet", "verbose", "help")
"""Options of evaluate-adapter that a sweep sets."""
TEXTS_OPTIONS = ("hypotheses", "references", "format", "allow_missing", "allow_extra")
"""Those of texts from elsewhere, which are not what a sweep evaluates."""
CHECKPOINTS = ("best", "last")
BASE, CHECKPOINT, EVALUATE = "base", "checkpoint", "evaluate"
"""Keys of a variant beside options of the training; the last one's options may also be written `evaluate.beams`."""


@dataclass(frozen=True)
class Variant:
    """One value of an axis, or one run that is told by itself.

    Attributes:
        overrides: options of the training by their path, such as `adapter.queries`.
        base: a recipe or a configuration in place of the grid's.
        checkpoint: a checkpoint or a training's folder, which is evaluated and not trained.
        options: of evaluate-adapter, above those of all runs; None takes one of these away.
    """

    label: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    base: str | None = None
    checkpoint: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def trains(self) -> bool:
        """Whether what is trained depends on it."""
        return bool(self.overrides) or self.base is not None or self.checkpoint is not None


@dataclass(frozen=True)
class Axis:
    """What varies."""

    name: str
    variants: tuple[Variant, ...]

    @property
    def evaluates(self) -> bool:
        """Whether evaluations alone differ along it, so that its variants share a training."""
        return any(variant.options for variant in self.variants) and not any(
            variant.trains for variant in self.variants
        )


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """How what was trained is measured; a column of the table is a metric on a split."""

    splits: tuple[str, ...]
    where: str | None = None
    """A condition on the table's columns: these utterances alone."""
    checkpoint: str = "best"
    """best or last; best is the last one where nothing was validated."""
    metrics: tuple[str, ...] = ("wer", "cer")
    """Columns of the table; everything that is measured is kept."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of evaluate-adapter, such as `method: beam`."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A sweep: all combinations of the axes but the excluded, and the runs, each with every seed where it is trained."""

    name: str
    evaluate: Evaluate
    store: str = "features"
    output_dir: str
    base: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Of every run, below those of an axis."""
    axes: tuple[Axis, ...] = ()
    exclude: tuple[Mapping[str, frozenset[str]], ...] = ()
    """Labels by axis: a combination is left out that has one of them on each of these axes."""
    runs: tuple[Variant, ...] = ()
    seeds: tuple[int, ...] = (0,)
    words: tuple[str, ...] = ()
    """`key=value` of the command line: above everything else."""


def load_grid(source: str | Path, words: Sequence[str] = ()) -> Grid:
    """The sweep of a YAML file, or of a grid that comes with the package by its name.

    Args:
        words: `key=value`: of the grid where the key's first part is one of its own (`store=features`, `seeds=[0]`), otherwise of
            every training (`training.max_steps=20`).

    Raises:
        EvaluationError, TrainingError: there is no such file or grid, or something in it is wrong.
    """
    path = find_grid(source)
    ours = [word for word in words if re.split(r"[.=]", word, maxsplit=1)[0] in KEYS]
    return parse_grid(path.stem, override(read_yaml(path), ours), [word for word in words if word not in ours])


def grids() -> dict[str, Path]:
    """The grids that come with the package, by name."""
    folder = Path(str(resources.files("encodeonce.evaluate.sweep"))) / "grids"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_grid(source: str | Path) -> Path:
    """The file that a user means: a path, or a shipped grid's name.

    Raises:
        EvaluationError: neither; near names are told.
    """
    path, known = Path(source), grids()
    if path.is_file():
        return path
    if str(source) in known:
        return known[str(source)]
    raise EvaluationError(
        f"{source}: no such file, and no grid of that name{near(str(source), known)}; --list-grids shows them"
    )


def parse_grid(name: str, values: Mapping[str, Any], words: Sequence[str] = ()) -> Grid:
    """The sweep that nested mappings say.

    Raises:
        EvaluationError: a key that is not known, one that is missing, or a value that cannot be.
    """
    check_known("", values, KEYS)
    if "evaluate" not in values:
        raise EvaluationError("evaluate is not given: say which splits are measured, such as evaluate: {splits: [dev]}")
    axes = tuple(_axis(str(axis), given) for axis, given in mapping("grid", values.get("grid")).items())
    found = Grid(
        name=name,
        store=text("store", values.get("store", "features")),
        output_dir=text("output_dir", values.get("output_dir", f"runs/sweep-{name}")),
        base=text("base", values["base"]) if values.get("base") is not None else None,
        overrides=_overrides("set", values.get("set")),
        evaluate=_evaluate(mapping("evaluate", values["evaluate"])),
        axes=axes,
        exclude=_exclude(values.get("exclude") or (), axes),
        runs=tuple(
            _variant(f"runs.{run}", str(run), given) for run, given in mapping("runs", values.get("runs")).items()
        ),
        seeds=_seeds(values.get("seeds", (0,))),
        words=tuple(words),
    )
    for word in words:
        _refuse_owned("the command line", word.partition("=")[0])
    return found


def _evaluate(values: Mapping[str, Any]) -> Evaluate:
    check_known("evaluate", values, [one.name for one in fields(Evaluate)])
    found = Evaluate(
        splits=texts("evaluate.splits", values.get("splits")),
        where=text("evaluate.where", values["where"]) if values.get("where") is not None else None,
        checkpoint=text("evaluate.checkpoint", values.get("checkpoint", "best")),
        metrics=texts("evaluate.metrics", values.get("metrics", Evaluate.metrics)),
        options=merged(_options("evaluate.options", values.get("options"))),
    )
    if found.checkpoint not in CHECKPOINTS:
        raise EvaluationError(f"evaluate.checkpoint={found.checkpoint}: take one of {', '.join(CHECKPOINTS)}")
    return found


def merged(*options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of evaluate-adapter, later ones above earlier ones, without those that are null."""
    found = {key: value for one in options for key, value in one.items()}
    return {key: value for key, value in found.items() if value is not None}


def _options(path: str, given: Any) -> Mapping[str, Any]:
    """Options of evaluate-adapter by their names there."""
    found = {str(key).replace("-", "_"): value for key, value in mapping(path, given).items()}
    for key, value in found.items():
        if key in OWNED_OPTIONS:
            raise EvaluationError(f"{path}.{key}: a sweep sets it itself, by store, encoder and evaluate")
        if key in TEXTS_OPTIONS:
            raise EvaluationError(f"{path}.{key} is of texts, and a sweep evaluates checkpoints: leave it out")
        if key in (one.name for one in fields(Evaluate)):
            raise EvaluationError(f"{path}.{key} is of the whole sweep: say evaluate.{key} beside grid and runs")
        parts = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(one, str | int | float) for one in parts):
            raise EvaluationError(f"{path}.{key}={value}: take a text, a number, true or false, or a list of them")
    return found


def _axis(name: str, given: Any) -> Axis:
    """An axis: a list of values of the option that its name says, or names with what each of them sets."""
    path = f"grid.{name}"
    if isinstance(given, Mapping):
        variants = tuple(_variant(f"{path}.{label}", str(label), bundle) for label, bundle in given.items())
    elif isinstance(given, list):
        variants = tuple(_valued(name, value) for value in given)
    else:
        raise EvaluationError(f"{path}={given}: take a list of values, or names with what each sets")
    if not variants:
        raise EvaluationError(f"{path} is empty: give values, or leave it out")
    once(path, [variant.label for variant in variants])
    return Axis(name, variants)


def _valued(name: str, value: Any) -> Variant:
    """A value of an option; objectives may be written as `stc+stg`."""
    path = PATHS.get(name, name)
    if isinstance(value, Mapping | list) or value is None or path in (BASE, CHECKPOINT, EVALUATE):
        raise EvaluationError(f"grid.{name}={value}: give it a name, such as {name}: {{small: {{{path}: {value}}}}}")
    if path.startswith(f"{EVALUATE}."):
        return Variant(str(value), options=_options(f"grid.{EVALUATE}", {path.removeprefix(f"{EVALUATE}."): value}))
    _refuse_owned(f"grid.{name}", path)
    if path == "objectives":
        return Variant(str(value), {path: {objective: {} for objective in str(value).split("+")}})
    return Variant(str(value), {path: value})


def _variant(path: str, label: str, given: Any) -> Variant:
    bundle = {str(key): value for key, value in mapping(path, given).items()}
    base, checkpoint = (
        text(f"{path}.{key}", value) if (value := bundle.pop(key, None)) is not None else None
        for key in (BASE, CHECKPOINT)
    )
    options = dict(_options(f"{path}.{EVALUATE}", bundle.pop(EVALUATE, None)))
    for key in [key for key in bundle if key.startswith(f"{EVALUATE}.")]:
        options |= _options(f"{path}.{EVALUATE}", {key.removeprefix(f"{EVALUATE}."): bundle.pop(key)})
    if checkpoint is not None:
        for key in [*([] if base is None else [BASE]), *bundle]:
            raise EvaluationError(
                f"{path}.{key}: what has a checkpoint is evaluated and not trained; leave out {key}, or checkpoint"
            )
    return Variant(label, _overrides(path, bundle), base, checkpoint, options)


def _overrides(path: str, given: Any) -> Mapping[str, Any]:
    found = {str(key): value for key, value in mapping(path, given).items()}
    for key in found:
        _refuse_owned(path, key)
    return found


def _refuse_owned(path: str, key: str) -> None:
    if key in OWNED:
        raise EvaluationError(f"{path}: a sweep sets {key} of every run itself; {OWNED[key]}")
    if key == CHECKPOINT or key.partition(".")[0] == EVALUATE:
        raise EvaluationError(f"{path}: {key} is no option of a training: say it in a run, or of an axis")


def _exclude(given: Any, axes: Sequence[Axis]) -> tuple[Mapping[str, frozenset[str]], ...]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise EvaluationError(
            f"exclude={given}: take a list, such as exclude: [{{encoder: hubert-base, queries: 100}}]"
        )
    known = {axis.name: [variant.label for variant in axis.variants] for axis in axes}
    found = []
    for number, entry in enumerate(given):
        path, labels = f"exclude.{number}", {}
        rule = mapping(path, entry)
        if not rule:
            raise EvaluationError(f"{path} names no axis, and would leave out everything")
        check_known(path, rule, list(known))
        for axis, value in rule.items():
            chosen = [str(one) for one in (value if isinstance(value, list) else [value])]
            for label in chosen:
                if label not in known[axis]:
                    raise EvaluationError(
                        f"{path}.{axis}={label}: not on that axis{near(label, known[axis])}; it has {', '.join(known[axis])}"
                    )
            labels[axis] = frozenset(chosen)
        found.append(labels)
    return tuple(found)


def _seeds(given: Any) -> tuple[int, ...]:
    """A list of seeds, or how many: 3 is [0, 1, 2]."""
    found = list(range(given)) if whole(given) else list(given) if isinstance(given, list | tuple) else []
    if not found or not all(whole(seed) and seed >= 0 for seed in found):
        raise EvaluationError(f"seeds={given}: take how many, or a list of whole numbers from 0")
    once("seeds", found)
    return tuple(found)
