"""The rows that a law is fitted to: read from a file, chosen, turned into a form's variables, and
never mixed silently.
"""

from __future__ import annotations

import ast
import csv
import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modality_forcing.errors import UserError
from modality_forcing.laws.forms import Array, Form
from modality_forcing.tree import flatten

LOSS = "loss"  # what is fitted, whatever error it is
# Rows that differ in one of these are numbers of different kinds: another code, another score,
# other held-out draws.
MUST_MATCH = ("version", "protocol", "seeds")
_TOLD = 30  # columns named to who asked for one that is not there; a sweep's rows have hundreds, most of their configs
_SYNTAX = "write numbers, + - * / ** ( ) and columns, a column of odd characters in `backquotes`"


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
        more = f" and {len(known) - _TOLD} more" if len(known) > _TOLD else ""
        meant = "".join(
            f"did you mean {name}? " for name in difflib.get_close_matches(column, known, n=1)
        )
        return f"{meant}it has {', '.join(known[:_TOLD])}{more}"

    def numbers(self, column: str) -> Array:
        """Returns a column [n]; raises UserError for one that is missing, and for what is not a
        number.
        """
        if not self.has(column):
            raise UserError(
                f"no column {column!r}", where=self.path, hint=f"{self._near(column)}; {_SYNTAX}"
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


@dataclass(frozen=True)
class Table:
    """Rows as a form's variables and loss, float64 [n] each; `groups` numbers the run or cell of
    each row from 0.
    """

    variables: Mapping[str, Array]
    loss: Array
    groups: NDArray[np.int64]
    lines: NDArray[np.int64]  # of the file, of the rows kept
    dropped: tuple[int, ...] = ()  # lines of the highest losses that were left out

    @classmethod
    def of(cls, variables: Mapping[str, Any], loss: Any, groups: Any = None) -> Table:
        """Returns a table of arrays; without groups, every row is a run."""
        loss = np.asarray(loss, float)
        numbers = (
            np.arange(len(loss))
            if groups is None
            else np.unique(np.asarray(groups), return_inverse=True)[1]
        )
        return cls(
            {k: np.asarray(x, float) for k, x in variables.items()},
            loss,
            numbers,
            np.arange(len(loss)),
        )

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def weights(self) -> Array:
        """[n], 1 on average: groups count equally, however many rows (checkpoints, seeds) each has."""
        sizes = np.bincount(self.groups)
        return (len(self) / len(sizes)) / sizes[self.groups]

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Table:
        """Returns the rows of a mask or of numbers, in their order."""
        groups = np.unique(self.groups[rows], return_inverse=True)[1]
        variables = {k: x[rows] for k, x in self.variables.items()}
        return Table(variables, self.loss[rows], groups, self.lines[rows], self.dropped)

    def drop_highest_losses(self, count: int) -> Table:
        """Returns the table less its highest losses (of equal ones, the last rows); raises
        UserError if none would be left.
        """
        if count >= len(self):
            raise UserError(
                f"--drop-highest {count} leaves none of {len(self)} rows", hint="drop fewer"
            )
        order = np.argsort(self.loss, kind="stable")
        kept, gone = np.sort(order[: len(self) - count]), np.sort(order[len(self) - count :])
        left = self.select(kept)
        return Table(
            left.variables, left.loss, left.groups, left.lines, tuple(self.lines[gone].tolist())
        )


def load(
    path: Path, columns: str | None, form: Form, where: Iterable[str] = (), group: str | None = None
) -> Table:
    """Reads the variables that a form needs.

    path: a table, or the folder of a sweep. columns: None for those that a sweep wrote beside its
    rows, else `VARIABLE=EXPRESSION,...` with `loss=` among them. where: `COLUMN=VALUE`, all of
    which must hold. group: the column that says which rows are of one run. Raises UserError for
    what is missing, not a number, not finite or not positive, and for rows that differ in a column
    of MUST_MATCH.
    """
    if path.is_dir():
        path = path / "rows.jsonl"
    if columns is None:
        columns = _sweep_columns(path, form)
    rows = _choose(read(path), where)
    _refuse_mixture(rows)
    values: dict[str, Array] = {}
    for name, text in _mapping(columns, form).items():
        values[name] = evaluate(text, rows, values)
        if name in (*form.variables, LOSS):
            _check(values[name], name, text, rows, zero_allowed=name in form.may_be_zero)
    for name in (*form.variables, LOSS):
        if name not in values:
            less = f", or leave it out of the form: {form.name}-{name}" if name != LOSS else ""
            raise UserError(
                f"--columns does not say what {name} is", hint=f"add {name}=COLUMN{less}"
            )
    groups = None
    if group is not None:
        if not rows.has(group):
            raise UserError(
                f"no column {group!r} to group by", where=path, hint="name another --group"
            )
        groups = [str(row.get(group)) for row in rows.cells]
    made = Table.of(values, values.pop(LOSS), groups)
    return Table(made.variables, made.loss, made.groups, np.array(rows.lines))


def _sweep_columns(path: Path, form: Form) -> str:
    """Returns the columns that a sweep wrote beside its rows; raises UserError where there are
    none.
    """
    try:
        found = json.loads((path.parent / "columns.json").read_text())
    except OSError:
        hint = "give --columns VARIABLE=COLUMN,...; only a sweep's folder has columns.json"
        raise UserError("--columns is missing", where=path, hint=hint) from None
    known = {name: column for name, column in found.items() if name in (*form.meaning, LOSS)}
    return ",".join(f"{name}={column}" for name, column in known.items())


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


def _choose(rows: Rows, where: Iterable[str]) -> Rows:
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
            there = sorted({_text(rows.cells[i].get(column)) for i in chosen})
            raise UserError(
                f"no row has {text}", where=rows.path, hint=f"{column} is {' or '.join(there[:6])}"
            )
        chosen = kept
    return Rows(
        rows.path, tuple(rows.cells[i] for i in chosen), tuple(rows.lines[i] for i in chosen)
    )


def _same(value: Any, wanted: str) -> bool:
    if _text(value) == wanted:
        return True
    try:
        return float(value) == float(wanted)
    except (TypeError, ValueError):
        return False


def _text(value: Any) -> str:
    """A cell as it is typed after --where: strings bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _refuse_mixture(rows: Rows) -> None:
    columns = dict.fromkeys(
        name for row in rows.cells for name in row if name.rpartition(".")[2] in MUST_MATCH
    )
    for column in columns:
        kinds = sorted({_text(row.get(column)) for row in rows.cells})
        if len(kinds) > 1:
            told = f"rows differ in {column}: {', '.join(kinds[:6])}; they are not one study"
            raise UserError(
                told, where=rows.path, hint=f"choose one with --where '{column}={kinds[0]}'"
            )


def _mapping(columns: str, form: Form) -> dict[str, str]:
    """Variable -> expression; a variable may be written in the other case where only one can be
    meant.
    """
    known, found = (*form.meaning, LOSS), {}
    for part in re.findall(r"(?:`[^`]*`|[^,`])+", columns):
        given, equals, text = (piece.strip() for piece in part.partition("="))
        alike = [name for name in known if name == given] or [
            name for name in known if name.lower() == given.lower()
        ]
        if not equals or not text or len(alike) != 1:
            hint = f"write VARIABLE=COLUMN,... with the variables {', '.join(known)}"
            raise UserError(
                f"--columns has {part.strip()!r}, which is no variable of {form.name}", hint=hint
            )
        if alike[0] in found:
            raise UserError(f"--columns gives {alike[0]} twice", hint="give it once")
        found[alike[0]] = text
    return found


def _check(values: Array, name: str, text: str, rows: Rows, zero_allowed: bool) -> None:
    fine = np.isfinite(values) & ((values >= 0) if zero_allowed else (values > 0))
    if not fine.all():
        row = int(np.argmin(fine))
        need = "finite and " + ("0 or more" if zero_allowed else "above 0")
        hint = "fix the row, or choose other rows with --where"
        raise UserError(
            f"{name} = {text} is {values[row]:g}, not {need}", where=rows.line(row), hint=hint
        )


_OPERATIONS: dict[type, Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.USub: np.negative,
    ast.UAdd: np.positive,
}


def evaluate(text: str, rows: Rows, variables: Mapping[str, Array]) -> Array:
    """Returns a column, or arithmetic on columns and on the variables before it, float64 [n];
    UserError for anything else.
    """
    if rows.has(text):
        return rows.numbers(text)
    quoted: list[str] = []
    plain = re.sub(
        r"`([^`]*)`",
        lambda found: f" __quoted{len(quoted)}__" + (quoted.append(found[1]) or ""),
        text,
    )
    try:
        tree = ast.parse(plain.strip(), mode="eval").body
        with np.errstate(all="ignore"):  # what is not finite is told with its row
            return np.broadcast_to(_value(tree, quoted, rows, variables), len(rows.cells)).astype(
                float
            )
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise UserError(
            f"cannot read the expression {text!r}", where="--columns", hint=_SYNTAX
        ) from None


def _value(node: ast.expr, quoted: list[str], rows: Rows, variables: Mapping[str, Array]) -> Any:
    again = lambda part: _value(part, quoted, rows, variables)
    match node:
        case ast.BinOp(left, operation, right) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](again(left), again(right))
        case ast.UnaryOp(operation, operand) if type(operation) in _OPERATIONS:
            return _OPERATIONS[type(operation)](again(operand))
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            return np.float64(value)
    name = _name(node)
    if match := re.fullmatch(r"__quoted(\d+)__", name):
        return rows.numbers(quoted[int(match[1])])
    alike = [known for known in variables if known == name] or [
        known for known in variables if known.lower() == name.lower()
    ]
    if not alike:
        return rows.numbers(name)
    if rows.has(name) and not np.array_equal(rows.numbers(name), variables[alike[0]]):
        hint = f"write `{name}` in backquotes for the column"
        raise UserError(
            f"{name!r} is a column and the variable {alike[0]}, which differ",
            where="--columns",
            hint=hint,
        )
    return variables[alike[0]]


def _name(node: ast.expr) -> str:
    """The dotted name that a node spells; raises ValueError for any other node."""
    match node:
        case ast.Name(name):
            return name
        case ast.Attribute(value, last):
            return f"{_name(value)}.{last}"
    raise ValueError
