"""Cells, columns and settings of a sweep's table as a reader is shown them."""

from collections.abc import Mapping

from encodeonce.evaluate.evaluation import Unit
from encodeonce.evaluate.report.wording import name_of
from encodeonce.evaluate.sweep.expand import RUN
from encodeonce.evaluate.sweep.table import Cell, Column, Table


def heading(column: Column, blank: str = " ") -> str:
    """`WER dev-clean, % ↓`; `blank` is the one before the arrow, which is where something is measured."""
    metric = name_of(column.metric)
    unit = ", %" if column.unit == "fraction" else ""
    arrow = "" if column.lower_is_better is None else f"{blank}{'↓' if column.lower_is_better else '↑'}"
    return f"{metric}{', ' if ' ' in metric else ' '}{column.split}{unit}{arrow}"


def places(table: Table) -> list[tuple[str, list[str]]]:
    """The columns that tell rows apart: the name of each, and the label of every row.

    Beside axes, runs that are told by themselves stand in the first column.
    """
    axes = [axis for axis in table.axes if axis != RUN] or list(table.axes)
    first = axes[0] if axes else None
    return [
        (
            axis.rpartition(".")[2].capitalize(),
            [row.labels.get(axis, row.labels.get(RUN, "") if axis == first else "") for row in table.rows],
        )
        for axis in axes
    ]


def setting(labels: Mapping[str, str]) -> str:
    """`hubert-base, queries 50`."""
    return ", ".join(f"{axis} {label}" if label.replace(".", "").isdigit() else label for axis, label in labels.items())


def scale_of(unit: Unit | None) -> int:
    """What values are multiplied by to be shown."""
    return 100 if unit == "fraction" else 1


def number(value: float, unit: Unit | None) -> str:
    """52.61; a ratio with three digits."""
    return f"{value:.3g}" if unit == "ratio" else f"{scale_of(unit) * value:.2f}"


def shown(cell: Cell, column: Column) -> str:
    """`52.61 ± 0.80`; where seeds are lacking, how many are there and what became of the others."""
    lacking = [
        f"{count} {what}"
        for count, what in ((cell.failed, "failed"), (cell.waiting, "not run"), (cell.without, "not measured"))
        if count
    ]
    if cell.mean is None:
        return "failed" if cell.failed else "not run" if cell.waiting else "-"
    spread = "" if cell.deviation is None else f" ± {number(cell.deviation, column.unit)}"
    n = f" (n={len(cell.values)}, {', '.join(lacking)})" if lacking else ""
    return f"{number(cell.mean, column.unit)}{spread}{n}"


def around(cell: Cell) -> tuple[float, float] | None:
    """One deviation below and above the mean; of a single seed its interval."""
    if cell.mean is None or cell.deviation is None:
        return cell.interval
    return cell.mean - cell.deviation, cell.mean + cell.deviation
