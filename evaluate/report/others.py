"""Published systems beside the one that was evaluated."""

from encodeonce.evaluate.evaluation import Evaluation
from encodeonce.evaluate.published.tables import PublishedTable, beside_published, published_tables, tasks_of
from encodeonce.evaluate.report.document import Block, Cell, Column, Paragraph, Section, Table
from encodeonce.evaluate.report.wording import NONE, name_of

INTRODUCTION = (
    "Figures of others are as they were printed; a number says why a cell is doubtful. Ours stand in a column only where "
    "that test set was evaluated whole, and apart otherwise: rates of different test sets do not compare."
)
NONE_OF_THIS = "None of them is of what was evaluated here."


def published(evaluation: Evaluation) -> Section | None:
    """All published tables, ours in or beside those of the same task; those of tasks that the report has nothing of are folded."""
    tables = published_tables()
    same = beside_published(evaluation)
    other = [table for table in tables if table.task not in tasks_of(evaluation)]
    blocks: list[Block] = [_table(table) for table in same]
    blocks += [_table(table, folded=True) for table in other]
    introduction = INTRODUCTION if len(other) < len(tables) else f"{INTRODUCTION} {NONE_OF_THIS}"
    return Section("published", "Published", [Paragraph(introduction), *blocks]) if blocks else None


def _table(table: PublishedTable, folded: bool = False) -> Table:
    columns = [Column(heading) for heading in table.headings]
    columns += [Column(f"{name_of(column.metric)}, {column.test_set}", "number") for column in table.columns]
    sources = any(row.source for row in table.rows if not row.ours)
    columns += [Column("Read in")] if sources else []
    rows = [
        [
            *(Cell(label) for label in row.labels),
            *(
                Cell(NONE if cell.printed is None else cell.printed, _number(cell.printed), cell.mark)
                for cell in row.cells
            ),
            *([Cell(row.source or table.source)] if sources else []),
        ]
        for row in table.rows
    ]
    note = " ".join(filter(None, [f"In {table.unit}.", f"Source: {table.source}.", table.note]))
    ours = [number for number, row in enumerate(table.rows) if row.ours]
    return Table(table.title, columns, rows, note, folded=folded, highlighted=ours)


def _number(printed: str | None) -> float | None:
    try:
        return None if printed is None else float(printed)
    except ValueError:
        return None
