"""Nested forms compared by their errors on the largest cells, which their fits leave out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modality_forcing.errors import UserError
from modality_forcing.laws.fit import optimum
from modality_forcing.laws.forms import Form, nested
from modality_forcing.laws.table import Table

_ALIKE = 0.01  # relatively: held-out errors this near to each other prefer neither form


@dataclass(frozen=True)
class HeldOut:
    """How a law fitted without the largest cells meets them; errors are of natural logs, law over
    loss.
    """

    cells: int
    rows: int
    rms: float  # root of the mean square
    bias: float  # the mean: above 0, the law promises too high a loss
    rms_fitted: float  # the same law on the rows it was fitted to


@dataclass(frozen=True)
class FormComparison:
    """One of the nested forms, judged by what it foretells and not by how closely it lies to what
    it has seen.
    """

    form: str
    parameters: int
    objective: float | None = None
    held_out: HeldOut | None = None
    identified: bool = False
    why: str = ""  # it is not identified, or was not fitted


def largest_cells(
    table: Table, form: Form, cells: int | None = None, by: str | None = None
) -> NDArray[np.bool_]:
    """Returns the mask of the rows in the largest cells: the greatest values of a variable, or of
    the form's size.

    cells: how many different values; a tenth of them (at least 1) if None. Raises UserError for an
    unknown variable.
    """
    if by is not None and by not in form.variables:
        raise UserError(
            f"cannot hold out by {by!r}",
            hint=f"{form.name} has the variables {', '.join(form.variables)}",
        )
    names = (
        [by]
        if by is not None
        else [name for name in form.size if name in form.variables] or list(form.variables)
    )
    with np.errstate(divide="ignore"):
        size = np.round(
            np.sum([np.log(table.variables[name]) for name in names], axis=0), 9
        )  # equal but for rounding
    values = np.unique(size)
    cells = max(1, round(len(values) / 10)) if cells is None else cells
    return size >= values[-min(cells, len(values))]


def held_out(table: Table, form: Form, heldout_mask: NDArray[np.bool_]) -> HeldOut:
    """Returns the errors on the rows `heldout_mask` of the law that is fitted to the others;
    raises UserError if it cannot be.
    """
    rest, test = table.select(~heldout_mask), table.select(heldout_mask)
    if not len(rest):
        raise UserError(
            "nothing is left to fit when the largest cells are held out", hint="hold out fewer"
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
    rms = lambda x: float(np.sqrt(np.mean(x**2)))
    points = np.unique(np.stack(list(test.variables.values())), axis=1).shape[1]
    return HeldOut(points, len(test), rms(error), float(error.mean()), rms(fitted))


def compare(
    table: Table, form: Form, heldout_mask: NDArray[np.bool_] | None
) -> tuple[list[FormComparison], str | None]:
    """Returns the form and those nested in it, and the name of the one that foretells the rows
    `heldout_mask` best, if any can.

    Of forms that foretell alike, as where a term has vanished, it is the one of fewest parameters.
    The rows need not determine each of these for the law to be determined, and a law is not better
    for being poor enough to be.
    """
    rows: list[FormComparison] = []
    for simpler in nested(form):
        count = len(simpler.seen_by(table.variables).parameters)
        try:
            found = optimum(table, simpler)
            apart = None if heldout_mask is None else held_out(table, simpler, heldout_mask)
        except UserError as error:
            rows.append(FormComparison(simpler.name, count, why=str(error)))
            continue
        why = "; ".join(dict.fromkeys(found.unidentified.values()))
        rows.append(
            FormComparison(simpler.name, count, found.objective, apart, not found.unidentified, why)
        )
    judged = [(row.held_out.rms, row) for row in rows if row.held_out is not None]
    least = min((rms for rms, _ in judged), default=0.0)
    alike = [
        (row.parameters, rms, row.form)
        for rms, row in judged
        if np.isclose(rms, least, rtol=_ALIKE, atol=1e-6)
    ]
    return rows, min(alike)[2] if alike else None
