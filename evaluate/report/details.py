"""The tables beside the scores, whatever metrics put there: lists of rows become tables, the rest names and values."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from encodeonce.evaluate.report.document import Block, Cell, Column, Section, Table
from encodeonce.evaluate.report.scores import cell_of
from encodeonce.evaluate.report.wording import name_of, rate

CAPTIONS = {
    "labels": {"labels": "By label", "confusions": "Labels told for others"},
    "retrieval": {"examples": "Utterances whose text was found last, with the nearest wrong text"},
}
"""Of the tables of rows in entries that are known."""
RATES = ("precision", "recall", "f1")
"""Keys of fractions that are shown in percent, as scores are."""
LONG = 30
"""A table of more rows scrolls inside itself."""


def details(found: Mapping[str, Any]) -> Section | None:
    """One block of tables for each entry, such as `labels` or `retrieval`."""
    blocks: list[Block] = [table for name, value in found.items() for table in _tables(name, value)]
    return Section("details", "In detail", blocks) if blocks else None


def _tables(name: str, value: Any) -> list[Table]:
    if not isinstance(value, Mapping):
        return [_table(name_of(name), value)] if _is_rows(value) else []
    single = {key: entry for key, entry in value.items() if not _is_rows(entry)}
    rows = [{"": name_of(str(key)), "value": entry} for key, entry in single.items()]
    captions = CAPTIONS.get(name, {})
    tables = [_table(name_of(name), rows)] if rows else []
    inner = ((str(key), entry) for key, entry in value.items() if _is_rows(entry))
    return tables + [
        _table(captions.get(key, f"{name_of(name)}: {name_of(key).lower()}"), entry) for key, entry in inner
    ]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = [Column(name_of(str(key)), _kind([row.get(key) for row in rows])) for key in keys]
    cells: list[list[Cell]] = [
        [rate(row.get(key)) if key in RATES else cell_of(row.get(key)) for key in keys] for row in rows
    ]
    return Table(title, columns, cells, long=len(rows) > LONG)


def _kind(values: Sequence[Any]) -> Literal["number", "text"]:
    return "number" if all(isinstance(value, int | float) for value in values if value is not None) else "text"
