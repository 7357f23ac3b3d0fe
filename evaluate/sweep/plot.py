"""The picture of a sweep: a metric of every setting, a dot for each seed, the mean and what is around it."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from encodeonce.evaluate.report.palette import COLOURS, INK
from encodeonce.evaluate.report.svg import drawing, inline_svg
from encodeonce.evaluate.report.wording import listed, name_of
from encodeonce.evaluate.sweep.expand import RUN
from encodeonce.evaluate.sweep.table import Cell, Column, Table
from encodeonce.evaluate.sweep.wording import around, scale_of, setting, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(table: Table, metric: str) -> tuple[str, bytes]:
    """A metric on all its splits, as the text of an SVG and as PNG.

    Whiskers are the deviation over seeds, or of a single seed the 95 % interval over utterances.

    Raises:
        StoreError: matplotlib is not installed.
    """
    columns = [(number, column) for number, column in enumerate(table.columns) if column.metric == metric]
    where = f" on {columns[0][1].split}" if len(columns) == 1 else ""
    unit, title = columns[0][1].unit, f"{name_of(metric)}{where} by {_what(table)}"
    with drawing(1.0 + len(table.rows) * (0.12 + 0.16 * len(columns))) as figure:
        axes = figure.subplots()
        for place, (number, column) in enumerate(columns):
            colour = COLOURS[place % len(COLOURS)]
            axes.plot([], [], "o", color=colour, label=column.split)
            for row, line in enumerate(table.rows):
                height = row + 0.24 * (place - (len(columns) - 1) / 2) if len(columns) > 1 else row
                _cell(axes, line.cells[number], column, height, colour)
        axes.set_yticks(range(len(table.rows)), [setting(row.labels) for row in table.rows])
        axes.tick_params("y", length=0)
        axes.set_ylim(len(table.rows) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        apart = [column.split for _, column in columns if not column.comparable]
        note = f"\non {listed(apart)} computed in several ways, and values do not compare" if apart else ""
        axes.set(title=title, xlabel=f"{name_of(metric)}{', %' if unit == 'fraction' else ''}{note}")
        if len(columns) > 1:
            figure.legend(loc="outside lower left", ncols=4)
        svg = inline_svg(figure, "sweep", title, _said(table, columns) + note.replace("\n", "; "))
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=160, facecolor="white")
    return svg, png.getvalue()


def _what(table: Table) -> str:
    """What the rows are: values of the only axis, or settings."""
    return table.axes[0].rpartition(".")[2] if len(table.axes) == 1 and table.axes[0] != RUN else "setting"


def _cell(axes: "Axes", cell: Cell, column: Column, height: float, colour: str) -> None:
    if cell.mean is None:
        place = {"xy": (0.01, height), "xycoords": ("axes fraction", "data")}
        axes.annotate(shown(cell, column), **place, color=colour, size=7, va="center")
        return
    scale, ends = scale_of(column.unit), around(cell)
    if ends is not None:
        axes.hlines(height, scale * ends[0], scale * ends[1], color=colour, lw=1.4)
    if len(cell.values) > 1:
        points = [scale * value for value in cell.values.values()]
        axes.plot(points, [height] * len(points), "o", ms=3, mfc="none", mec=INK, mew=0.6, zorder=3)
    axes.plot(scale * cell.mean, height, "o", ms=5.5, color=colour, zorder=2)


def _said(table: Table, columns: Sequence[tuple[int, Column]]) -> str:
    """The same in words."""
    return "; ".join(
        f"{setting(row.labels)}: "
        + ", ".join(f"{shown(row.cells[number], column)} on {column.split}" for number, column in columns)
        for row in table.rows
    )
