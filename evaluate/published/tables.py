"""What was published: the thesis's tables and the rivals', as printed, each cell that cannot be right with its reason."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

from encodeonce.evaluate.evaluation import RESYNTHESIS, Evaluation

FILES = ("thesis.json", "rivals.json")
TEST_SETS = "test-sets.json"


@dataclass(frozen=True, slots=True)
class Column:
    """What a column's cells measure.

    Attributes:
        metric: a score's name: `wer`, `cer`, `bertscore_f1` ...
        test_set: such as `LibriSpeech dev-clean`.
    """

    metric: str
    test_set: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as printed, such as `103.56`; None: not published.

    Attributes:
        mark: why it cannot be right, or what it does not say.
    """

    printed: str | None
    mark: str | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A system's figures.

    Attributes:
        labels: one for each of the table's headings, such as the encoder and its queries.
        cells: one for each of the table's columns.
        source: where it was read, where that differs from the table's.
        ours: measured here, not published.
    """

    labels: tuple[str, ...]
    cells: tuple[Cell, ...]
    source: str | None = None
    ours: bool = False


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """Rows of figures under columns.

    Attributes:
        name: an identifier, such as `thesis-asr`.
        title: as a caption.
        task: of the systems: `recognition`, `translation`, `resynthesis`, `extraction`.
        headings: of the labels of each row.
        unit: of all cells, such as `percent`.
        source: where it was read.
        note: what has to be known to read it.
    """

    name: str
    title: str
    task: str
    headings: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    unit: str
    source: str
    note: str | None = None


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """All tables, the thesis's first."""
    read = [_read(name) for name in FILES]
    return tuple(_table(entry, part["source"]) for part in read for entry in part["tables"])


def beside_published(evaluation: Evaluation) -> list[PublishedTable]:
    """The published tables of the evaluation's tasks with its row in them, and a table of what no test set of theirs has."""
    tables, tasks = published_tables(), tasks_of(evaluation)
    ours = elsewhere(tables, [evaluation])
    same = [beside(table, [evaluation]) for table in tables if table.task in tasks]
    return same + ([ours] if ours else [])


def tasks_of(evaluation: Evaluation) -> set[str]:
    """What an evaluation has figures of, in the words of `PublishedTable.task`."""
    found: set[str] = {evaluation.task} if evaluation.utterances else set()
    return found | ({RESYNTHESIS} if RESYNTHESIS in evaluation.details else set())


def beside(table: PublishedTable, evaluations: Sequence[Evaluation]) -> PublishedTable:
    """A table with ours below its rows, in the columns of the test set that was evaluated; one that fits none is left out."""
    ours = []
    for evaluation in evaluations:
        test_set = known_test_set(evaluation)
        cells = [
            _measured(evaluation, column.metric) if column.test_set == test_set else Cell(None)
            for column in table.columns
        ]
        if evaluation.task == table.task and any(cell.printed for cell in cells):
            ours.append(_our_row(evaluation, len(table.headings), cells))
    return replace(table, rows=(*table.rows, *ours))


def elsewhere(tables: Sequence[PublishedTable], evaluations: Sequence[Evaluation]) -> PublishedTable | None:
    """Evaluations that stand beside nothing, because they are of other test sets, with the metrics that the tables have for their task.

    Returns: None where there are none.
    """
    left = [one for one in evaluations if not any(row.ours for table in tables for row in beside(table, [one]).rows)]
    cells = {
        (number, column): _measured(one, column.metric)
        for number, one in enumerate(left)
        for column in _own(one, tables)
    }
    columns = tuple(dict.fromkeys(column for (_, column), cell in cells.items() if cell.printed))
    rows = (
        _our_row(one, 1, [cells.get((number, column), Cell(None)) for column in columns])
        for number, one in enumerate(left)
    )
    return (
        PublishedTable(
            "elsewhere",
            "Measured here on another test set",
            "recognition" if all(one.task == "recognition" for one in left) else "any",
            ("System",),
            columns,
            tuple(row for row in rows if any(cell.printed for cell in row.cells)),
            "percent",
            "this evaluation",
            "Not to be read against the published tables: other speech, other speakers, perhaps an encoder that was trained for the task.",
        )
        if columns
        else None
    )


def known_test_set(evaluation: Evaluation) -> str | None:
    """The published test set that was evaluated whole: its split's name and its number of utterances; None: another one."""
    for name, entry in _read(TEST_SETS).items():
        same = evaluation.config.get("split") == entry["split"] and len(evaluation.utterances) == entry["utterances"]
        if same and not evaluation.unscored:
            return name
    return None


def _own(evaluation: Evaluation, tables: Sequence[PublishedTable]) -> list[Column]:
    """The metrics of its task, on its own test set."""
    count = len(evaluation.utterances)
    test_set = f"{evaluation.config.get('split') or 'given texts'}, {count:,} utterance{'s' * (count != 1)}"
    metrics = (column.metric for table in tables if table.task == evaluation.task for column in table.columns)
    return [Column(metric, test_set) for metric in dict.fromkeys(metrics)]


def _our_row(evaluation: Evaluation, headings: int, cells: Sequence[Cell]) -> Row:
    return Row((evaluation.title, *[""] * (headings - 1)), tuple(cells), "measured here", ours=True)


def _measured(evaluation: Evaluation, metric: str) -> Cell:
    score = evaluation.scores.get(metric)
    if score is None or score.unit != "fraction":
        return Cell(None)
    mark = (
        f"ours is by {score.signature}; the published one's model is not said"
        if metric.startswith("bertscore")
        else None
    )
    return Cell(f"{100 * score.value:.2f}", mark)


def _table(entry: dict[str, Any], source: str) -> PublishedTable:
    return PublishedTable(
        entry["name"],
        entry["title"],
        entry["task"],
        tuple(entry["headings"]),
        tuple(Column(*column) for column in entry["columns"]),
        tuple(Row(tuple(row["labels"]), tuple(map(_cell, row["cells"])), row.get("source")) for row in entry["rows"]),
        entry["unit"],
        source,
        entry["note"],
    )


def _cell(entry: str | dict[str, str] | None) -> Cell:
    return Cell(**entry) if isinstance(entry, dict) else Cell(entry)


@cache
def _read(name: str) -> dict[str, Any]:
    return json.loads(files("encodeonce.evaluate.published").joinpath(name).read_text(encoding="utf-8"))
