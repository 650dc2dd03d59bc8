"""The rows of a file: reading, selection and columns of numbers."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.laws.forms import Array
from modality_forcing.tree import flatten

# Columns that a message lists. Rows of a sweep have hundreds, most of them of configs.
_MAX_NAMED = 30
SYNTAX = "write numbers, + - * / ** ( ) and columns, a column of odd characters in `backquotes`"


@dataclass(frozen=True)
class Rows:
    """The rows of a file: a mapping of columns to cells, and a line number, per row."""

    path: Path
    cells: tuple[Mapping[str, Any], ...]
    lines: tuple[int, ...]

    def has(self, column: str) -> bool:
        """Whether any row has the column."""
        return any(column in row for row in self.cells)

    def _near(self, column: str) -> str:
        """The most similar column, then some of the others, nested columns last."""
        known = sorted(
            {name for row in self.cells for name in row}, key=lambda name: (name.count("."), name)
        )
        more = f" and {len(known) - _MAX_NAMED} more" if len(known) > _MAX_NAMED else ""
        similar = "".join(
            f"did you mean {name}? " for name in difflib.get_close_matches(column, known, n=1)
        )
        return f"{similar}it has {', '.join(known[:_MAX_NAMED])}{more}"

    def numbers(self, column: str) -> Array:
        """Returns a column [n]; raises UserError if it is missing or a cell is not a number."""
        if not self.has(column):
            raise UserError(
                f"no column {column!r}", where=self.path, hint=f"{self._near(column)}; {SYNTAX}"
            )
        values = np.empty(len(self.cells))
        for i, row in enumerate(self.cells):
            try:
                values[i] = float(row[column])
            except (KeyError, TypeError, ValueError):
                message = f"{column} is {row.get(column)!r}, not a number"
                raise UserError(
                    message, where=self.line(i), hint="fix it, or choose other rows with --where"
                ) from None
        return values

    def line(self, row: int) -> str:
        """Returns the file and line number of a row."""
        return f"{self.path}, line {self.lines[row]}"


def read(path: Path) -> Rows:
    """Reads .csv with a header, or .jsonl with an object per line (nested keys become a.b.c).

    Raises UserError for a file that cannot be read or has no rows.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot be read ({getattr(error, 'strerror', None) or error})",
            where=path,
            hint="name a table",
        ) from None
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl}
    if path.suffix not in readers:
        raise UserError("is not a table of a known type", where=path, hint="give .csv or .jsonl")
    found = list(readers[path.suffix](text, path))
    if not found:
        raise UserError("has no rows", where=path, hint="give a table with a row per run")
    return Rows(path, tuple(row for row, _ in found), tuple(line for _, line in found))


def _read_csv(text: str, path: Path) -> Iterable[tuple[dict[str, Any], int]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    for row in reader:
        if None in row:
            raise UserError(
                "has more cells than the header",
                where=f"{path}, line {reader.line_num}",
                hint="fix the row",
            )
        yield row, reader.line_num


def _read_jsonl(text: str, path: Path) -> Iterable[tuple[dict[str, Any], int]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(
                    "is not a JSON object", where=f"{path}, line {number}", hint="fix the line"
                )
            yield flatten(row, "."), number


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
            raise UserError(
                f"--where {text!r} names no column of the table", where=rows.path, hint=hint
            )
        matches = [i for i in chosen if _same(rows.cells[i].get(column), wanted) != negated]
        if not matches:
            values = sorted({display(rows.cells[i].get(column)) for i in chosen})
            raise UserError(
                f"no row has {text}", where=rows.path, hint=f"{column} is {' or '.join(values[:6])}"
            )
        chosen = matches
    return Rows(
        rows.path, tuple(rows.cells[i] for i in chosen), tuple(rows.lines[i] for i in chosen)
    )


def _same(value: Any, wanted: str) -> bool:
    if display(value) == wanted:
        return True
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return False


def display(value: Any) -> str:
    """Returns a cell as in --where: strings without quotes, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
