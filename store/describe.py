"""Descriptions of utterances: the columns that may change without anything being encoded anew."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from encodeonce.store.table import DESCRIPTIVE, SCHEMA, TRANSLATION


def redescribe(table: pa.Table, said: Mapping[str, Mapping[str, Any]]) -> tuple[pa.Table, int]:
    """The table with what is said now of its utterances, and how many rows that changed.

    `said` is by id and by column, as utterances.parquet keeps them; a column that is not mentioned stays as it is.
    """
    ids = table["id"].to_pylist()
    said = {name: said[name] for name in ids if name in said}
    spoken = {column for columns in said.values() for column in columns if column.startswith(TRANSLATION)}
    spoken.update(name for name in table.column_names if name.startswith(TRANSLATION))
    standing = {
        name: table[name].to_pylist() if name in table.column_names else [None] * len(table)
        for name in [*DESCRIPTIVE, *sorted(spoken)]
    }
    changed = 0
    for i, name in enumerate(ids):
        different = {column: value for column, value in said.get(name, {}).items() if standing[column][i] != value}
        for column, value in different.items():
            standing[column][i] = value
        changed += bool(different)
    for column, values in standing.items() if changed else ():
        field = SCHEMA.field(column) if column in SCHEMA.names else pa.field(column, pa.string())
        array = pa.array(values, field.type)
        at = table.column_names.index(column) if column in table.column_names else None
        table = table.append_column(field, array) if at is None else table.set_column(at, field, array)
    return table, changed
