"""The table that a law is fitted to: a form's variables and the loss, from rows of one study."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.laws.expressions import evaluate, match_name
from modality_forcing.laws.forms import Array, Form
from modality_forcing.laws.rows import Rows, choose, display, read
from modality_forcing.text_io import read_object, shorten

LOSS = "loss"  # the fitted error, of any kind
_MAX_VALUE = 1e50  # the fifth power times a loss, which a coefficient may be, is still a float
# Rows that differ in one of these are not comparable: other code, metrics or held-out samples.
MUST_MATCH = ("version", "protocol", "seeds")


@dataclass(frozen=True)
class Table:
    """Rows as a form's variables and loss, float64 [n] each.

    groups: the number of the run or cell of each row, from 0.
    """

    variables: Mapping[str, Array]
    loss: Array
    groups: NDArray[np.int64]
    lines: NDArray[np.int64]  # line numbers of the rows in the file
    dropped: tuple[int, ...] = ()  # lines of the highest losses that were left out

    @classmethod
    def of(
        cls,
        variables: Mapping[str, ArrayLike],
        loss: ArrayLike,
        groups: NDArray | Sequence[object] | None = None,
    ) -> Table:
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
        """Weights [n] with mean 1 and equal sums over groups, however many rows each has."""
        sizes = np.bincount(self.groups)
        return (len(self) / len(sizes)) / sizes[self.groups]

    @property
    def repeats(self) -> list[tuple[int, int]]:
        """The lines of rows that equal an earlier row of another group, with the line of that."""
        first: dict[bytes, int] = {}
        found = []
        for i, row in enumerate(np.stack([*self.variables.values(), self.loss], axis=1)):
            earlier = first.setdefault(row.tobytes(), i)
            if self.groups[earlier] != self.groups[i]:
                found.append((int(self.lines[i]), int(self.lines[earlier])))
        return found

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Table:
        """Returns the rows of a mask or of indices, in their order."""
        groups = np.unique(self.groups[rows], return_inverse=True)[1]
        variables = {k: x[rows] for k, x in self.variables.items()}
        return Table(variables, self.loss[rows], groups, self.lines[rows], self.dropped)

    def drop_highest_losses(self, count: int) -> Table:
        """Returns the table without its highest losses; of equal losses the last rows are dropped.

        Raises UserError if no row would remain.
        """
        if count >= len(self):
            raise UserError(
                f"--drop-highest {count} leaves none of {len(self)} rows", hint="drop fewer"
            )
        order = np.argsort(self.loss, kind="stable")
        first = len(self) - count
        dropped = self.lines[np.sort(order[first:])].tolist()
        return replace(self.select(np.sort(order[:first])), dropped=tuple(dropped))


def load(
    path: Path,
    columns: str | None,
    form: Form,
    *,
    where: Iterable[str] = (),
    group: str | None = None,
) -> Table:
    """Reads the variables that a form needs.

    path: a table, or the folder of a sweep. columns: `VARIABLE=EXPRESSION,...`, among them `loss=`;
    None for the columns.json of a sweep. where: conditions `COLUMN=VALUE` that rows must match.
    group: the column with the run of a row. Raises UserError for values that are missing, not
    finite or not positive, and for rows that differ in a column of MUST_MATCH.
    """
    if paths.is_dir(path):
        path = path / "rows.jsonl"
    every_row = read(path)  # first, since a missing table is the more basic mistake
    if columns is None:
        columns = _sweep_columns(path, form)
    rows = choose(every_row, where)
    _refuse_mixture(rows)
    values: dict[str, Array] = {}
    for name, text in _mapping(columns, form).items():
        values[name] = evaluate(text, rows, values)
        if name in (*form.variables, LOSS):
            _check(values[name], f"{name} = {text}", rows, zero_allowed=name in form.may_be_zero)
    for name in (*form.variables, LOSS):
        if name not in values:
            less = f", or leave it out of the form: {form.name}-{name}" if name != LOSS else ""
            raise UserError(f"--columns does not define {name}", hint=f"add {name}=COLUMN{less}")
    groups = None
    if group is not None:
        if not rows.has(group):
            raise UserError(
                f"no column {group!r} to group by", where=path, hint="name another --group"
            )
        groups = [row.get(group) for row in rows.cells]
        for i, value in enumerate(groups):
            if value in (None, ""):
                hint = "fill it in, or name another --group"
                raise UserError(f"has no value of {group}", where=rows.line(i), hint=hint)
        groups = [str(value) for value in groups]
    table = Table.of(values, values.pop(LOSS), groups)
    return replace(table, lines=np.array(rows.lines))


def _sweep_columns(path: Path, form: Form) -> str:
    """Returns the columns that a sweep wrote; raises UserError if there are none."""
    written = path.parent / "columns.json"
    if not paths.is_file(written):
        hint = "give --columns VARIABLE=COLUMN,...; only a sweep's folder has columns.json"
        raise UserError("--columns is missing", where=path, hint=hint)
    found = read_object(written, hint="give --columns VARIABLE=COLUMN,...")
    known = {name: column for name, column in found.items() if name in (*form.meaning, LOSS)}
    return ",".join(f"{name}={column}" for name, column in known.items())


def _refuse_mixture(rows: Rows) -> None:
    columns = dict.fromkeys(
        name for row in rows.cells for name in row if name.rpartition(".")[2] in MUST_MATCH
    )
    for column in columns:
        kinds = sorted({display(row.get(column)) for row in rows.cells})
        if len(kinds) > 1:
            shown = ", ".join(map(shorten, kinds[:6]))
            message = f"rows differ in {column}: {shown}; they are not one study"
            raise UserError(
                message, where=rows.path, hint=f"choose one with --where '{column}={kinds[0]}'"
            )


def _mapping(columns: str, form: Form) -> dict[str, str]:
    """Variable -> expression; the case of a variable matters only where two differ in it."""
    known, found = (*form.meaning, LOSS), {}
    for part in re.findall(r"(?:`[^`]*`|[^,`])+", columns):
        given, equals, text = (piece.strip() for piece in part.partition("="))
        matches = match_name(given, known)
        if not equals or not text or len(matches) != 1:
            hint = f"write VARIABLE=COLUMN,... with the variables {', '.join(known)}"
            raise UserError(
                f"--columns has {part.strip()!r}, which is no variable of {form.name}", hint=hint
            )
        if matches[0] in found:
            raise UserError(f"--columns gives {matches[0]} twice", hint="give it once")
        found[matches[0]] = text
    return found


def _check(values: Array, name: str, rows: Rows, *, zero_allowed: bool) -> None:
    valid = np.isfinite(values) & ((values >= 0) if zero_allowed else (values > 0))
    in_range = (values == 0) | (values >= 1 / _MAX_VALUE) & (values <= _MAX_VALUE)
    if not valid.all():
        row = int(np.argmin(valid))
        required = "finite and " + ("0 or more" if zero_allowed else "above 0")
        hint = "fix the row, or choose other rows with --where"
        raise UserError(
            f"{name} is {values[row]:g}, not {required}", where=rows.line(row), hint=hint
        )
    if not in_range.all():
        row = int(np.argmin(in_range))
        what = f"{name} is {values[row]:g}, not between {1 / _MAX_VALUE:g} and {_MAX_VALUE:g}"
        raise UserError(what, where=rows.line(row), hint="choose another unit")
