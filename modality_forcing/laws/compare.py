"""Nested forms compared by their errors on the largest cells, which their fits leave out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modality_forcing.errors import UserError
from modality_forcing.laws.fit import optimum
from modality_forcing.laws.forms import Array, Form, nested
from modality_forcing.laws.table import Table

_SAME_ERROR = 0.01  # held-out errors within 1% count as equal


@dataclass(frozen=True)
class HeldOut:
    """Errors of a law on the cells that its fit left out, of natural logs, law minus loss."""

    cells: int
    rows: int
    rms: float  # root mean square
    bias: float  # mean; above 0, the law predicts too high a loss
    rms_fitted: float  # of the same law on the rows of its fit


@dataclass(frozen=True)
class FormComparison:
    """One of the nested forms, with its error on held-out rows."""

    form: str
    parameters: int
    objective: float | None = None
    held_out: HeldOut | None = None
    identified: bool = False
    reason: str = ""  # the reason why it is not identified or not fitted


def largest_cells(
    table: Table, form: Form, cells: int | None = None, by: str | None = None
) -> NDArray[np.bool_]:
    """Returns the mask [n] of the rows with the greatest values of a variable or the form's size.

    cells: the number of different values; a tenth of them (at least 1) if None. Raises UserError
    for an unknown variable.
    """
    if by is not None and by not in form.variables:
        raise UserError(
            f"cannot hold out by {by!r}",
            hint=f"{form.name} has the variables {', '.join(form.variables)}",
        )
    if by is not None:
        names = [by]
    else:
        names = [name for name in form.size if name in form.variables] or list(form.variables)
    with np.errstate(divide="ignore"):
        logs = np.sum([np.log(table.variables[name]) for name in names], axis=0)
    size = np.round(logs, 9)  # equal cells differ by rounding errors
    values = np.unique(size)
    cells = max(1, round(len(values) / 10)) if cells is None else cells
    return size >= values[-min(cells, len(values))]


def held_out(table: Table, form: Form, heldout_mask: NDArray[np.bool_]) -> HeldOut:
    """Returns the errors on the rows `heldout_mask` of the law fitted to the other rows.

    Raises UserError if the other rows are too few, or if a variable is 0 only in held-out rows.
    """
    rest, test = table.select(~heldout_mask), table.select(heldout_mask)
    if not len(rest):
        raise UserError(
            "no rows remain for the fit when the largest cells are held out", hint="hold out fewer"
        )
    found = optimum(rest, form)
    for name in form.may_be_zero:
        if name not in found.form.may_be_zero and np.any(test.variables[name] == 0):
            raise UserError(
                f"all rows with {name} = 0 are held out",
                hint="hold out fewer, or by another variable",
            )
    error = found.form.predict(found.values, test.variables) - np.log(test.loss)
    fitted = found.form.predict(found.values, rest.variables) - np.log(rest.loss)
    points = np.unique(np.stack(list(test.variables.values())), axis=1).shape[1]
    return HeldOut(points, len(test), _rms(error), float(error.mean()), _rms(fitted))


def compare(
    table: Table, form: Form, heldout_mask: NDArray[np.bool_] | None
) -> tuple[list[FormComparison], str | None]:
    """Returns the form with those nested in it, and the name of the best on held-out rows.

    Of forms with equal errors, as where a term has vanished, the best has the fewest parameters.
    Its parameters need not be identified: the law can be determined where single parameters are
    not, and an identified form can be the worse one. The name is None if no form has errors.
    """
    rows: list[FormComparison] = []
    for simpler in nested(form):
        count = len(simpler.seen_by(table.variables).parameters)
        try:
            found = optimum(table, simpler)
            errors = None if heldout_mask is None else held_out(table, simpler, heldout_mask)
        except UserError as error:
            rows.append(FormComparison(simpler.name, count, reason=str(error)))
            continue
        reason = "; ".join(dict.fromkeys(found.unidentified.values()))
        rows.append(
            FormComparison(
                simpler.name, count, found.objective, errors, not found.unidentified, reason
            )
        )
    measured = [(row.held_out.rms, row) for row in rows if row.held_out is not None]
    lowest = min((rms for rms, _ in measured), default=0.0)
    equal = [
        (row.parameters, rms, row.form)
        for rms, row in measured
        if np.isclose(rms, lowest, rtol=_SAME_ERROR, atol=1e-6)
    ]
    return rows, min(equal)[2] if equal else None


def _rms(errors: Array) -> float:
    return float(np.sqrt(np.mean(errors**2)))
