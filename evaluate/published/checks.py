"""What cannot be right in a table of figures, found by arithmetic alone."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from encodeonce.evaluate.published.tables import PublishedTable, Row

SPREAD = 6.0
"""Points that precision and recall of an utterance may be apart, root mean square; 1 to 4 where nothing is odd."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Cells of a row that do not go together; `cells` are indices of columns."""

    table: str
    row: int
    cells: tuple[int, ...]
    reason: str


def findings(tables: Sequence[PublishedTable]) -> list[Finding]:
    """All that is found, table by table."""
    found = [one for table in tables for check in (_f1, _copies, _twice) for one in check(table)]
    by_name = {table.name: table for table in tables}
    if {"thesis-translation", "thesis-translation-detail"} <= by_name.keys():
        found += _quoted(by_name["thesis-translation"], by_name["thesis-translation-detail"])
    return found


def _f1(table: PublishedTable) -> Iterator[Finding]:
    """Mean F1 is at most (P + R) / 2 of the means, and below it by the mean of (P - R)² / (2 (P + R)) over utterances."""
    for number, row in enumerate(table.rows):
        for test_set in dict.fromkeys(column.test_set for column in table.columns):
            places = [_place(table, f"bertscore_{part}", test_set) for part in ("precision", "recall", "f1")]
            values = [_value(row, place) for place in places]
            precision, recall, f1 = values
            if precision is None or recall is None or f1 is None or places[2] is None:
                continue
            most, rounding = (precision + recall) / 2, 0.01
            if f1 > most + rounding:
                yield Finding(
                    table.name, number, (places[2],), f"F1 {f1:.2f} exceeds (P + R) / 2 = {most:.2f} on {test_set}"
                )
            elif (apart := math.sqrt(4 * most * max(most - f1 - rounding, 0))) > SPREAD:
                reason = (
                    f"F1 {f1:.2f} needs precision and recall {apart:.1f} points apart in an utterance on {test_set}"
                )
                yield Finding(table.name, number, (places[2],), reason)


def _copies(table: PublishedTable) -> Iterator[Finding]:
    """Two test sets with the same figures in every metric of a row, where there are several."""
    test_sets = dict.fromkeys(column.test_set for column in table.columns)
    for number, row in enumerate(table.rows):
        for first, second in combinations(test_sets, 2):
            here, there = ([i for i, c in enumerate(table.columns) if c.test_set == name] for name in (first, second))
            figures = [[row.cells[i].printed for i in places] for places in (here, there)]
            if len(here) > 1 and figures[0] == figures[1] and all(figures[0]):
                yield Finding(table.name, number, (*here, *there), f"{first} and {second} are the same in every figure")


def _twice(table: PublishedTable) -> Iterator[Finding]:
    """A system that stands there twice, with the same figure in a column."""
    for (i, first), (j, second) in combinations(enumerate(table.rows), 2):
        if first.labels != second.labels:
            continue
        for column, cells in enumerate(zip(first.cells, second.cells, strict=True)):
            if cells[0].printed is not None and cells[0].printed == cells[1].printed:
                for row in (i, j):
                    reason = f"{' '.join(first.labels)} stands there twice with {cells[0].printed}"
                    yield Finding(table.name, row, (column,), reason)


def _quoted(table: PublishedTable, detail: PublishedTable) -> Iterator[Finding]:
    """The thesis's own row among other systems has figures that are an F1 of its detailed table."""
    number = next(i for i, row in enumerate(table.rows) if row.labels[0].startswith("AST-Qformer"))
    for place, column in enumerate(table.columns):
        pair = column.test_set.split(",")[0]
        (row,) = (row for row in detail.rows if row.labels[0].endswith(pair))
        wanted = [row.cells[i].printed for i, other in enumerate(detail.columns) if other.metric == "bertscore_f1"]
        if (printed := table.rows[number].cells[place].printed) not in wanted:
            reason = f"{printed} is no F1 of {detail.name}: {', '.join(map(str, wanted))}"
            yield Finding(table.name, number, (place,), reason)


def _place(table: PublishedTable, metric: str, test_set: str) -> int | None:
    places = [i for i, column in enumerate(table.columns) if (column.metric, column.test_set) == (metric, test_set)]
    return places[0] if places else None


def _value(row: Row, place: int | None) -> float | None:
    printed = None if place is None else row.cells[place].printed
    return None if printed is None else float(printed)
