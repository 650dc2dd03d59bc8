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

_MAX_NAMED = 30  # columns named to who asked for one that is not there; a sweep's rows have hundreds, most of their configs
SYNTAX = "write numbers, + - * / ** ( ) and columns, a column of odd characters in `backquotes`"


@dataclass(frozen=True)
class Rows:
    """What a file holds, as it is written: a mapping and a line number per row."""

    path: Path
    cells: tuple[Mapping[str, Any], ...]
    lines: tuple[int, ...]

    def has(self, column: str) -> bool:
        """Whether any row has it."""
        return any(column in row for row in self.cells)

    def _near(self, column: str) -> str:
        """What columns there are: the one that may have been meant, then some, a row's own before
        those of its config.
        """
        known = sorted(
            {name for row in self.cells for name in row}, key=lambda name: (name.count("."), name)
        )
        more = f" and {len(known) - _MAX_NAMED} more" if len(known) > _MAX_NAMED else ""
        meant = "".join(
            f"did you mean {name}? " for name in difflib.get_close_matches(column, known, n=1)
        )
        return f"{meant}it has {', '.join(known[:_MAX_NAMED])}{more}"

    def numbers(self, column: str) -> Array:
        """Returns a column [n]; raises UserError for one that is missing, and for what is not a
        number.
        """
        if not self.has(column):
            raise UserError(
                f"no column {column!r}", where=self.path, hint=f"{self._near(column)}; {SYNTAX}"
            )
        values = np.empty(len(self.cells))
        for i, row in enumerate(self.cells):
            try:
                values[i] = float(row[column])
            except (KeyError, TypeError, ValueError):
                told = f"{column} is {row.get(column)!r}, not a number"
                raise UserError(
                    told, where=self.line(i), hint="fix it, or choose other rows with --where"
                ) from None
        return values

    def line(self, row: int) -> str:
        """Names a row as an editor finds it."""
        return f"{self.path}, line {self.lines[row]}"


def read(path: Path) -> Rows:
    """Reads .csv with a header, or .jsonl with an object a line (nested keys become a.b.c); raises
    UserError if it cannot.
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
        raise UserError(
            "is not a kind of table that is known", where=path, hint="give .csv or .jsonl"
        )
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
    """The rows in which every COLUMN=VALUE and COLUMN!=VALUE holds; 1 and 1.0 are equal."""
    chosen = range(len(rows.cells))
    for text in where:
        column, equals, wanted = text.partition("=")
        other, column = column.endswith("!"), column.removesuffix("!")
        if not equals or not rows.has(column):
            hint = "write --where COLUMN=VALUE or COLUMN!=VALUE with a column of the table"
            raise UserError(f"--where {text!r} names no column of it", where=rows.path, hint=hint)
        kept = [i for i in chosen if _same(rows.cells[i].get(column), wanted) != other]
        if not kept:
            there = sorted({display(rows.cells[i].get(column)) for i in chosen})
            raise UserError(
                f"no row has {text}", where=rows.path, hint=f"{column} is {' or '.join(there[:6])}"
            )
        chosen = kept
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
    """A cell as it is typed after --where: strings bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
