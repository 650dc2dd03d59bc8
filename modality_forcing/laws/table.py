"""The table that a law is fitted to: a form's variables and the loss, from rows of one study."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modality_forcing.errors import UserError
from modality_forcing.laws.expressions import evaluate
from modality_forcing.laws.forms import Array, Form
from modality_forcing.laws.rows import Rows, choose, display, read

LOSS = "loss"  # what is fitted, whatever error it is
# Rows that differ in one of these are numbers of different kinds: another code, another score,
# other held-out draws.
MUST_MATCH = ("version", "protocol", "seeds")


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
    rows = choose(read(path), where)
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


def _refuse_mixture(rows: Rows) -> None:
    columns = dict.fromkeys(
        name for row in rows.cells for name in row if name.rpartition(".")[2] in MUST_MATCH
    )
    for column in columns:
        kinds = sorted({display(row.get(column)) for row in rows.cells})
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
