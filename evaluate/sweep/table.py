"""The table of a sweep: rows are settings, columns metrics on splits, cells means and deviations over seeds. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from statistics import fmean, stdev
from typing import Any, Literal

from encodeonce.evaluate.evaluation import Unit


@dataclass(frozen=True)
class Measured:
    """What evaluate-adapter found of a training on a split; everything by metric."""

    values: Mapping[str, float]
    units: Mapping[str, Unit] = field(default_factory=dict)
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    signatures: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Why a metric was not computed."""


@dataclass(frozen=True)
class Result:
    """What has come of a run so far: by split a measurement, or why there is none yet.

    Attributes:
        parameters: that were trained; None before a training's end.
        seconds: of the training's last go.
        checkpoint: what was evaluated; None: what the sweep trained.
        options: of evaluate-adapter.
    """

    name: str
    labels: Mapping[str, str]
    seed: int
    splits: Mapping[str, Measured | Literal["failed", "waiting"]]
    parameters: int | None = None
    seconds: float | None = None
    checkpoint: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Column:
    """A metric on a split.

    Attributes:
        unit, lower_is_better: None where nothing is measured yet.
    """

    metric: str
    split: str
    unit: Unit | None = None
    lower_is_better: bool | None = None
    signatures: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether its cells were computed in one way."""
        return len(self.signatures) < 2


@dataclass(frozen=True)
class Cell:
    """A setting in a column.

    Attributes:
        values: of the seeds that were measured, by seed.
        failed, waiting, without: seeds that failed, that have not been run to their end, and in which this is not measured.
        interval: of the value itself, 95 %, where a single seed was measured.
        best: no other cell of the column has a better mean, and they compare.
    """

    values: Mapping[int, float]
    failed: int = 0
    waiting: int = 0
    without: int = 0
    interval: tuple[float, float] | None = None
    best: bool = False

    @property
    def mean(self) -> float | None:
        """Over seeds; None where nothing was measured."""
        return fmean(self.values.values()) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Of the sample of seeds (over n - 1); None below two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """A setting; its runs differ in their seeds alone."""

    labels: Mapping[str, str]
    cells: tuple[Cell, ...]
    parameters: int | None


@dataclass(frozen=True)
class Table:
    """Rows in the order of the grid; `seeds` is how many each setting was to have."""

    axes: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    seeds: int


def tabulate(results: Sequence[Result], metrics: Sequence[str], splits: Sequence[str]) -> Table:
    """Put the runs of a sweep together.

    Args:
        metrics: columns, each over all splits before the next one, as in the thesis.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result.labels.items()), []).append(result)
    columns = tuple(_column(results, metric, split) for metric in metrics for split in splits)
    cells = [[_cell(runs, column) for column in columns] for runs in groups.values()]
    for number, column in enumerate(columns):
        if not column.comparable:
            continue
        means = [row[number].mean for row in cells]
        best = _best([mean for mean in means if mean is not None], column.lower_is_better is not False)
        for row, mean in zip(cells, means, strict=True):
            if mean is not None and best is not None and isclose(mean, best):
                row[number] = _marked(row[number])
    return Table(
        axes=tuple(dict.fromkeys(axis for labels in groups for axis, _ in labels)),
        columns=columns,
        rows=tuple(
            Row(dict(labels), tuple(row), next((run.parameters for run in runs if run.parameters is not None), None))
            for (labels, runs), row in zip(groups.items(), cells, strict=True)
        ),
        seeds=max(map(len, groups.values()), default=0),
    )


def measured(results: Iterable[Result], split: str) -> list[Measured]:
    """The measurements on a split."""
    found = (result.splits.get(split) for result in results)
    return [one for one in found if isinstance(one, Measured)]


def _column(results: Sequence[Result], metric: str, split: str) -> Column:
    having = [one for one in measured(results, split) if metric in one.values]
    signatures = tuple(dict.fromkeys(one.signatures[metric] for one in having if metric in one.signatures))
    if not having:
        return Column(metric, split)
    higher = having[0].higher_is_better.get(metric, False)
    return Column(metric, split, having[0].units.get(metric, "fraction"), not higher, signatures)


def _cell(runs: Sequence[Result], column: Column) -> Cell:
    found = {run.seed: run.splits.get(column.split, "waiting") for run in runs}
    having = {seed: one for seed, one in found.items() if isinstance(one, Measured) and column.metric in one.values}
    intervals = [one.intervals.get(column.metric) for one in having.values()]
    return Cell(
        values={seed: one.values[column.metric] for seed, one in having.items()},
        failed=sum(one == "failed" for one in found.values()),
        waiting=sum(one == "waiting" for one in found.values()),
        without=sum(isinstance(one, Measured) for one in found.values()) - len(having),
        interval=intervals[0] if len(intervals) == 1 else None,
    )


def _best(means: Sequence[float], lower: bool) -> float | None:
    return (min if lower else max)(means) if means else None


def _marked(cell: Cell) -> Cell:
    return Cell(cell.values, cell.failed, cell.waiting, cell.without, cell.interval, best=True)
