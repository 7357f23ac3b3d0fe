"""Conditions on the columns of a table as text: `duration < 15 and language == 'en'`, for configuration files."""

import ast
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from encodeonce.store.errors import StoreError
from encodeonce.store.reader import FeatureStore

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
HOW = "compare columns with values, join with and, or, not; for example: duration < 15 and speaker in ('103', '1034')"


def condition(text: str, columns: list[str]) -> pc.Expression:
    """A condition written as a Python expression over column names, as an Arrow expression.

    `==`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `not in`, `is None`, `is not None`, `and`, `or`, `not`; nothing is executed. Where a
    value is missing a comparison holds neither way, as in SQL.

    Raises:
        StoreError: it cannot be read, or names a column that the table lacks.
    """

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return [value(element) for element in node.elts]
        raise StoreError(f"where {text!r}: {ast.unparse(node)!r} is no value; {HOW}")

    def side(node: ast.expr) -> Any:
        if not isinstance(node, ast.Name):
            return pc.scalar(value(node))
        if node.id not in columns:
            raise StoreError(f"where {text!r}: no column {node.id!r}; there are {', '.join(columns)}")
        return pc.field(node.id)

    def compare(left: ast.expr, operation: ast.cmpop, right: ast.expr) -> pc.Expression:
        if isinstance(operation, ast.In | ast.NotIn):
            among = value(right)
            if not isinstance(among, list):
                raise StoreError(
                    f"where {text!r}: {ast.unparse(right)} is no list of values; write ({ast.unparse(right)},)"
                )
            found = side(left).isin(among)
            return found if isinstance(operation, ast.In) else ~found & side(left).is_valid()
        if isinstance(operation, ast.Is | ast.IsNot) and isinstance(right, ast.Constant) and right.value is None:
            return side(left).is_null() if isinstance(operation, ast.Is) else side(left).is_valid()
        if any(isinstance(node, ast.Constant) and node.value is None for node in (left, right)):
            raise StoreError(f"where {text!r}: missing values are found with `is None`, others with `is not None`")
        compared = COMPARISONS.get(type(operation))
        if compared is None:
            raise StoreError(f"where {text!r}: {ast.unparse(right)!r} is compared in a way that is not known; {HOW}")
        return compared(side(left), side(right))

    def build(node: ast.expr) -> pc.Expression:
        if isinstance(node, ast.BoolOp):
            parts = [build(part) for part in node.values]
            joined = parts[0]
            for part in parts[1:]:
                joined = joined & part if isinstance(node.op, ast.And) else joined | part
            return joined
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~build(node.operand)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            joined = compare(sides[0], node.ops[0], sides[1])
            for i, operation in enumerate(node.ops[1:], 1):
                joined = joined & compare(sides[i], operation, sides[i + 1])
            return joined
        raise StoreError(f"where {text!r}: {ast.unparse(node)!r} is no condition; {HOW}")

    try:
        return build(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise StoreError(f"where {shown!r} cannot be read ({str(error)[:80]}); {HOW}") from error


def matching(store: FeatureStore, where: str | pc.Expression) -> np.ndarray:
    """Positions of the utterances that a condition holds for, int64.

    Raises:
        StoreError: the condition does not fit the table.
    """
    if isinstance(where, str):
        expression = condition(where, store.column_names)
        named = {node.id for node in ast.walk(ast.parse(where.strip(), mode="eval")) if isinstance(node, ast.Name)}
        table = store.columns(sorted({"id", *named}))
    else:
        expression, table = where, store.table
    numbered = table.append_column("__position__", pa.array(np.arange(len(table))))
    try:
        return numbered.filter(expression)["__position__"].to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise StoreError(f"where {where!s} does not fit the table: {error}") from error
