"""The files of a sweep: its table as Markdown, CSV, HTML and JSON, and its picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from encodeonce.evaluate.report.markdown import escaped
from encodeonce.evaluate.report.wording import listed, name_of
from encodeonce.evaluate.sweep.plot import draw
from encodeonce.evaluate.sweep.table import Cell, Measured, Result, Table
from encodeonce.evaluate.sweep.wording import heading, places, shown
from encodeonce.store.files import atomic_write, write_json
from encodeonce.train.estimate import millions

TABLE, RESULTS, PLOT = "table", "results.json", "plot"
STAR = "★"


@dataclass(frozen=True)
class Told:
    """What the files say beside the table.

    Attributes:
        about: the sweep's first line.
        failures: lines of failures.jsonl.
    """

    name: str
    about: str
    failures: Sequence[Mapping[str, Any]] = ()


def write_text(folder: Path, told: Told, table: Table, results: Sequence[Result]) -> None:
    """table.md, table.csv and results.json: cheap, and so written whenever a run is done."""
    _write(folder / f"{TABLE}.md", "\n".join([f"# {escaped(told.name)}", "", *markdown(table), *_below(told, table)]))
    _write(folder / f"{TABLE}.csv", csv_of(table))
    write_json(folder / RESULTS, as_object(told, table, results))


def write_pages(folder: Path, told: Told, table: Table) -> Path:
    """table.html with the picture in it, plot.svg and plot.png; gives the page.

    The picture is of the first metric that was measured at all.
    """
    measured = [column.metric for number, column in enumerate(table.columns) if _any(table, number)]
    svg = None
    if measured:
        svg, png = draw(table, measured[0])
        _write(folder / f"{PLOT}.svg", svg)
        with atomic_write(folder / f"{PLOT}.png") as file:
            file.write(png)
    _write(folder / f"{TABLE}.html", _page(told, table, svg))
    return folder / f"{TABLE}.html"


def markdown(table: Table) -> list[str]:
    """The table in lines: the best of a column bold."""
    labels = places(table)
    heads = [*(name for name, _ in labels), "Parameters", *map(heading, table.columns)]
    lines = [[head.replace("|", "\\|") for head in heads], ["---"] * len(labels) + ["--:"] * (len(heads) - len(labels))]
    for number, row in enumerate(table.rows):
        cells = [shown(cell, column) for cell, column in zip(row.cells, table.columns, strict=True)]
        marked = [f"**{text}**" if cell.best else text for text, cell in zip(cells, row.cells, strict=True)]
        lines.append([*(escaped(names[number]) for _, names in labels), _size(row.parameters), *marked])
    return [f"| {' | '.join(cells)} |" for cells in lines]


def notes(table: Table, mark: str = "bold") -> list[str]:
    """What one has to know to read the table; `mark` is how the best is shown."""
    several = any(cell.deviation is not None for row in table.rows for cell in row.cells)
    found = [
        f"Mean ± standard deviation over n = {table.seeds} seeds (of the sample, n - 1); the best mean of a column is {mark}."
        if several
        else f"One seed: no deviation; the best of a column is {mark}."
    ]
    if several and any(_alone(cell) for row in table.rows for cell in row.cells):
        found.append("Without ±: one training alone, and no other seeds of it.")
    if any(cell.without for row in table.rows for cell in row.cells):
        found.append("-: not measured: no objective of what was trained is told by it, or a library is missing.")
    found += [
        f"{name_of(column.metric)} on {column.split} was computed in several ways, so that its cells do not compare and none is the best: "
        f"{'; '.join(column.signatures)}."
        for column in table.columns
        if not column.comparable
    ]
    return found


def csv_of(table: Table) -> str:
    """Values as they are (rates are fractions): for each column mean, std, n, failed and best."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = [f"{column.metric} {column.split}" for column in table.columns]
    writer.writerow(
        [
            *table.axes,
            "parameters",
            *(f"{head} {what}" for head in heads for what in ("mean", "std", "n", "failed", "best")),
        ]
    )
    for row in table.rows:
        cells = [value for cell in row.cells for value in _plain(cell)]
        writer.writerow([*(row.labels.get(axis, "") for axis in table.axes), row.parameters, *cells])
    return file.getvalue()


def as_object(told: Told, table: Table, results: Sequence[Result]) -> dict[str, Any]:
    """Everything, for results.json and --json."""
    return {
        "sweep": told.name,
        "about": told.about,
        "axes": list(table.axes),
        "columns": [
            {
                "metric": column.metric,
                "split": column.split,
                "unit": column.unit,
                "higher_is_better": None if column.lower_is_better is None else not column.lower_is_better,
                "signatures": list(column.signatures),
            }
            for column in table.columns
        ],
        "rows": [
            {"labels": dict(row.labels), "parameters": row.parameters, "cells": [_cell(cell) for cell in row.cells]}
            for row in table.rows
        ],
        "runs": [_run(result) for result in results],
        "failures": list(told.failures),
        "versions": {"encodeonce": version("encodeonce")},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _run(result: Result) -> dict[str, Any]:
    splits = {
        split: {"values": dict(found.values), "skipped": dict(found.skipped)} if isinstance(found, Measured) else found
        for split, found in result.splits.items()
    }
    return {
        "name": result.name,
        "labels": dict(result.labels),
        "seed": result.seed,
        "parameters": result.parameters,
        "seconds": result.seconds,
        "checkpoint": result.checkpoint,
        "evaluate": dict(result.options),
        "splits": splits,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    mean, deviation, n, failed, best = _plain(cell)
    return {
        "mean": mean,
        "std": deviation,
        "n": n,
        "values": {str(seed): value for seed, value in cell.values.items()},
        "interval": cell.interval and list(cell.interval),
        "failed": failed,
        "waiting": cell.waiting,
        "not_measured": cell.without,
        "best": best,
    }


def _plain(cell: Cell) -> tuple[float | None, float | None, int, int, bool]:
    return cell.mean, cell.deviation, len(cell.values), cell.failed, cell.best


def _below(told: Told, table: Table) -> list[str]:
    failed = [f"- {escaped(one['run'])} failed at {one['step']}: {escaped(one['reason'])}" for one in told.failures]
    return ["", *(line for note in notes(table) for line in (note, "")), *failed, *([""] if failed else [])]


def _page(told: Told, table: Table, svg: str | None) -> str:
    from encodeonce.evaluate.report.document import Block, Bullets, Column, Document, Figure, Paragraph, Section
    from encodeonce.evaluate.report.document import Cell as Entry
    from encodeonce.evaluate.report.document import Table as Shown
    from encodeonce.evaluate.report.page import html_of

    labels = places(table)
    columns = [Column(name) for name, _ in labels]
    columns += [
        Column("Parameters", "number"),
        *(Column(heading(column, "\u00a0"), "number") for column in table.columns),
    ]
    rows = []
    for number, row in enumerate(table.rows):
        cells = [
            Entry(f"{STAR} " * cell.best + shown(cell, column), cell.mean)
            for cell, column in zip(row.cells, table.columns, strict=True)
        ]
        rows.append(
            [*(Entry(names[number]) for _, names in labels), Entry(_size(row.parameters), row.parameters), *cells]
        )
    caption = f"{told.name}: {listed(list(dict.fromkeys(name_of(one.metric) for one in table.columns)))}"
    first, *others = notes(table, f"marked {STAR}")
    blocks: list[Block] = [
        Shown(caption, columns, rows, first),
        *map(Paragraph, others),
    ]
    sections = [Section("table", "Table", blocks)]
    if svg is not None:
        text = (
            "Points are means, rings single seeds; lines one standard deviation, or of a single seed the 95 % interval."
        )
        sections.append(Section("picture", "Picture", [Figure(svg, text)]))
    if told.failures:
        lines = [f"{one['run']}, {one['step']}: {one['reason']}" for one in told.failures]
        sections.append(Section("failures", "What failed", [Bullets(lines)]))
    facts = [f"{len(table.rows)} settings", f"{table.seeds} seed{'s' * (table.seeds != 1)}"]
    footer = f"Made by encodeonce on {datetime.now(UTC):%Y-%m-%d}. The same as text: table.md; for programs: table.csv, results.json."
    return html_of(Document(told.about or told.name, facts, [], sections, footer, kind="Sweep"))


def _alone(cell: Cell) -> bool:
    return len(cell.values) == 1 and not (cell.failed or cell.waiting or cell.without)


def _any(table: Table, number: int) -> bool:
    return any(row.cells[number].values for row in table.rows)


def _size(parameters: int | None) -> str:
    return "" if parameters is None else millions(parameters)


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", "replace"))
