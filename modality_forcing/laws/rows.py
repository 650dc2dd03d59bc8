"""The rows of a file: reading, selection and columns of numbers."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.laws.forms import Array
from modality_forcing.text_io import (
    check_unique,
    list_some,
    parse_csv,
    parse_object,
    shorten,
    split_lines,
)
from modality_forcing.tree import flatten

# Columns that a message lists. Rows of a sweep have hundreds, most of them of configs.
_MAX_NAMED = 30
SYNTAX = "write numbers, + - * / ** ( ) and columns, a column of odd characters in `backquotes`"


@dataclass(frozen=True)
class Rows:
    """The rows of a file: a mapping of columns to cells, and a line number, per row."""

    path: Path
    cells: tuple[Mapping[str, object], ...]
    lines: tuple[int, ...]

    def has(self, column: str) -> bool:
        """Whether any row has the column."""
        return any(column in row for row in self.cells)

    def _near(self, column: str) -> str:
        """The most similar column, then some of the others, nested columns last."""
        known = sorted(
            {name for row in self.cells for name in row}, key=lambda name: (name.count("."), name)
        )
        similar = "".join(
            f"did you mean {name}? " for name in difflib.get_close_matches(column, known, n=1)
        )
        return f"{similar}it has {list_some(known, _MAX_NAMED)}"

    def numbers(self, column: str) -> Array:
        """Returns a column [n]; raises UserError if it is missing or a cell is not a number."""
        if not self.has(column):
            raise UserError(
                f"no column {column!r}", where=self.path, hint=f"{self._near(column)}; {SYNTAX}"
            )
        values = np.empty(len(self.cells))
        for i, row in enumerate(self.cells):
            try:
                values[i] = _number(row[column])
            except (KeyError, TypeError, ValueError):
                shown = shorten(repr(row.get(column)))
                raise UserError(
                    f"{column} is {shown}, not a number",
                    where=self.line(i),
                    hint="fix it, or choose other rows with --where",
                ) from None
        return values

    def line(self, row: int) -> str:
        """Returns the file and line number of a row."""
        return f"{self.path}, line {self.lines[row]}"


def read(path: Path) -> Rows:
    """Reads .csv with a header, or .jsonl with an object per line (nested keys become a.b.c).

    The first character decides for a name without an ending, such as that of a pipe. Raises
    UserError for a file that cannot be read, has a column twice or has no rows.
    """
    suffix = path.suffix.lower()
    if suffix not in ("", ".csv", ".jsonl"):
        raise UserError("is not a table of a known type", where=path, hint="give .csv or .jsonl")
    text = paths.read_text(path, "name a table")
    is_json = suffix == ".jsonl" or (not suffix and text.lstrip().startswith("{"))
    if is_json:
        found = list(_read_jsonl(text, path))
    else:
        try:
            found = parse_csv(text)
        except ValueError as error:
            raise UserError(str(error), where=path, hint="fix the table") from error
    if not found:
        raise UserError("has no rows", where=path, hint="give a table with a row per run")
    return Rows(path, tuple(row for _, row in found), tuple(line for line, _ in found))


def _read_jsonl(text: str, path: Path) -> Iterable[tuple[int, dict[str, object]]]:
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            try:
                # A character that no column has keeps {"a": {"b": 1}} and {"a.b": 2} apart.
                cells = flatten(parse_object(line, finite=False), "\0")
                names = [name.replace("\0", ".") for name in cells]
                check_unique(names, "column")
            except ValueError as error:
                where = f"{path}, line {number}"
                what = f"is not a JSON object with a value per column ({error})"
                raise UserError(what, where=where, hint="fix the line") from None
            yield number, dict(zip(names, cells.values(), strict=True))


def choose(rows: Rows, where: Iterable[str]) -> Rows:
    """Returns the rows that match every COLUMN=VALUE and COLUMN!=VALUE; 1 equals 1.0.

    Raises UserError for an unknown column and if no row matches.
    """
    chosen = range(len(rows.cells))
    for text in where:
        column, equals, wanted = text.partition("=")
        negated, column = column.endswith("!"), column.removesuffix("!")
        if not equals or not rows.has(column):
            hint = "write --where COLUMN=VALUE or COLUMN!=VALUE with a column of the table"
            what = "names no column of the table" if equals else "has no = or !="
            raise UserError(f"--where {text!r} {what}", where=rows.path, hint=hint)
        matches = [i for i in chosen if _same(rows.cells[i].get(column), wanted) != negated]
        if not matches:
            values = sorted({shorten(display(rows.cells[i].get(column))) for i in chosen})
            raise UserError(
                f"no row has {text}", where=rows.path, hint=f"{column} is {' or '.join(values[:6])}"
            )
        chosen = matches
    return Rows(
        rows.path, tuple(rows.cells[i] for i in chosen), tuple(rows.lines[i] for i in chosen)
    )


def _number(cell: object) -> float:
    """The number of a cell, of CSV a text; raises TypeError or ValueError for others."""
    # float takes a bool as 0 or 1.
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise TypeError
    return float(cell)


def _same(value: object, wanted: str) -> bool:
    if display(value) == wanted:
        return True
    try:
        return isinstance(value, str | int | float) and float(value) == float(wanted)
    except ValueError:
        return False


def display(value: object) -> str:
    """Returns a cell as in --where: strings without quotes, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
