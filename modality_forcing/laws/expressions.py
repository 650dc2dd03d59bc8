"""Arithmetic on the columns of a table, e.g. `flop/(6*n)`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.laws.forms import Array
from modality_forcing.laws.rows import SYNTAX, Rows

_OPERATIONS: dict[type, np.ufunc] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.USub: np.negative,
    ast.UAdd: np.positive,
}


def evaluate(text: str, rows: Rows, variables: Mapping[str, Array]) -> Array:
    """Returns a column or arithmetic on columns and `variables`, float64 [n].

    Raises UserError for any other expression, an unknown column and an ambiguous name.
    """
    if rows.has(text):
        return rows.numbers(text)
    # Every second part is a column in backquotes.
    parts = re.split(r"`([^`]*)`", text)
    quoted = {f"__quoted{i}__": column for i, column in enumerate(parts) if i % 2}
    plain = "".join(f" __quoted{i}__ " if i % 2 else part for i, part in enumerate(parts))
    try:
        tree = ast.parse(plain.strip(), mode="eval").body
        with np.errstate(all="ignore"):  # table.load reports values that are not finite
            return np.broadcast_to(_value(tree, quoted, rows, variables), len(rows.cells)).astype(
                float
            )
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise UserError(
            f"cannot read the expression {text!r}", where="--columns", hint=SYNTAX
        ) from None


def match_name(name: str, known: Iterable[str]) -> list[str]:
    """Returns the known names that a name may stand for: its own, else those of any case."""
    known = list(known)
    return [name] if name in known else [x for x in known if x.lower() == name.lower()]


def _value(
    node: ast.expr, quoted: Mapping[str, str], rows: Rows, variables: Mapping[str, Array]
) -> Array | np.float64:
    def operand_value(part: ast.expr) -> Array | np.float64:
        return _value(part, quoted, rows, variables)

    match node:
        case ast.BinOp(left, operation, right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](operand_value(left), operand_value(right))
        case ast.UnaryOp(operation, operand) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](operand_value(operand))
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            return np.float64(value)
    name = _name(node)
    if name in quoted:
        return rows.numbers(quoted[name])
    matches = match_name(name, variables)
    if not matches:
        return rows.numbers(name)
    if rows.has(name) and not np.array_equal(rows.numbers(name), variables[matches[0]]):
        hint = f"write `{name}` in backquotes for the column"
        raise UserError(
            f"{name!r} is a column and the variable {matches[0]}, which differ",
            where="--columns",
            hint=hint,
        )
    return variables[matches[0]]


def _name(node: ast.expr) -> str:
    """The dotted name that a node spells; raises ValueError for any other node."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, last):
            return f"{_name(value)}.{last}"
    raise ValueError
