"""The fit of a form to a table: the optimum, the parameters that are identified, their intervals.

The objective is that of Hoffmann et al. 2022 (2203.15556, eq. 3): the Huber loss of the residuals
of log loss, delta 1e-3, summed. The mean would be so small that common tolerances stop before the
optimum, which is how the published law came to be wrong (Besiroglu et al. 2024, 2404.10102).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modality_forcing.errors import UserError
from modality_forcing.laws import solver
from modality_forcing.laws.forms import Array, Design, Form
from modality_forcing.laws.table import Table

COVERAGE = 0.95  # of intervals
_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3, 2.2)  # the grid of starts, for each exponent
_STARTS = 16  # the best of the grid, from which the fit descends
_VANISHED = 1e-3  # a term below this share of the law in every row counts as absent
_FLAT = 1e-6  # a singular value of unit gradients below this is a rounding error
# A law without one term may be the best of a resample if its objective is below this multiple.
_NEAR = 2.0
_SIMPLIFY = "add runs, or leave a term or a variable out of the form: FORM-TERM"
_MAX_TRIES = 20  # rounds of resampling


@dataclass(frozen=True)
class Parameter:
    """An estimate with its 95% interval, or the reason why there is none."""

    value: float | None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""  # the reason why it is not identified

    @property
    def identified(self) -> bool:
        """Whether the table determines it."""
        return not self.reason


@dataclass(frozen=True)
class Optimum:
    """The parameters of the lowest objective; those in `unidentified` are arbitrary."""

    design: Design
    theta: Array  # [p]
    objective: float
    unidentified: Mapping[str, str]  # parameter -> why the rows cannot determine it

    @property
    def form(self) -> Form:
        """The form, without the levels of zeros that no row has."""
        return self.design.form

    @property
    def values(self) -> Array:
        """[p], in the form's order and units."""
        return self.design.natural(self.theta)


@dataclass(frozen=True)
class Fit:
    """An optimum with the optima of resampled tables."""

    optimum: Optimum
    replicates: Array  # [r p], in the form's units
    parameters: Mapping[str, Parameter]
    notes: tuple[str, ...] = ()  # warnings about the intervals

    @property
    def form(self) -> Form:
        """The form of the law."""
        return self.optimum.form

    def predict(self, variables: Mapping[str, ArrayLike]) -> Array:
        """Returns the log of the law [n], which is determined even if parameters are not."""
        return self.form.predict(self.optimum.values, variables)

    def band(self, variables: Mapping[str, ArrayLike]) -> Array:
        """Returns the pointwise 95% interval [2 n] of the log of the law, not of single runs."""
        tail = (1 - COVERAGE) / 2
        return np.quantile(self.form.predict(self.replicates, variables), [tail, 1 - tail], axis=0)


def optimum(table: Table, form: Form) -> Optimum:
    """Returns the best of many descents from a grid of exponents.

    Raises UserError for fewer different points than parameters.
    """
    form = form.seen_by(table.variables)
    variables = np.stack([table.variables[name] for name in form.variables])
    points, parameters = np.unique(variables, axis=1).shape[1], len(form.parameters)
    if points < parameters:
        message = f"{points} different points cannot determine the {parameters} parameters of"
        raise UserError(f"{message} {form.name}", hint=_SIMPLIFY)
    design, log_loss = Design.of(form, table.variables), np.log(table.loss)
    grid = project(
        design, table.loss, np.array(list(product(_EXPONENTS, repeat=len(form.exponents))))
    )
    reached = solver.objective(design, log_loss, table.weights, grid)
    starts = grid[np.argsort(reached, kind="stable")[:_STARTS]]
    theta, value = _descend(design, table, starts)
    absent, reached = _optima_without_terms(design, table, theta[value.argmin()])
    theta, value = np.concatenate([theta, absent]), np.concatenate([value, reached])
    theta, value = _descend(design, table, theta[[value.argmin()]], max_steps=2000)
    return Optimum(design, theta[0], float(value[0]), _unidentified(design, theta[0]))


def _descend(
    design: Design, table: Table, starts: Array, max_steps: int = 200
) -> tuple[Array, Array]:
    weights = np.tile(table.weights, (len(starts), 1))
    return solver.minimize(design, np.log(table.loss), weights, starts, max_steps=max_steps)


def _optima_without_terms(design: Design, table: Table, theta: Array) -> tuple[Array, Array]:
    """The optima [k p] with one term absent each, and their values [k].

    Where a term is best absent, a descent along the log of its coefficient never ends, and its
    exponent drifts all along.
    """
    coefficients = np.flatnonzero(design.is_coefficient)
    starts = np.tile(theta, (len(coefficients), 1))
    starts[np.arange(len(starts)), coefficients] = -np.inf  # clipped to the lower bound
    return _descend(design, table, starts)


def project(design: Design, loss: Array, exponents: Array) -> Array:
    """Returns theta [b p] with the least-squares coefficients for exponents [b q].

    The residuals are relative. Variable projection (Golub & Pereyra 1973): given the exponents, the
    law is linear in its coefficients, none of which is negative.
    """
    from scipy.optimize import nnls

    is_coefficient = design.is_coefficient
    theta = np.zeros((len(exponents), len(is_coefficient)))
    theta[:, ~is_coefficient] = exponents
    with np.errstate(over="ignore"):
        terms = np.stack(
            [np.exp(theta @ s + a) for s, a in zip(design.slopes, design.absent, strict=True)],
            axis=2,
        )
        terms = np.minimum(terms / loss[:, None], 1e30)
    # Columns of one length are well conditioned.
    length = np.maximum(np.linalg.norm(terms, axis=1, keepdims=True), 1e-300)
    solved = [nnls(columns, np.ones(len(loss)))[0] for columns in terms / length]
    coefficients = np.stack(solved) / length[:, 0]
    # A term at 0 has no gradient.
    coefficients = np.clip(coefficients, 1e-3 * np.median(loss), 1e3 * loss.max())
    theta[:, is_coefficient] = np.log(coefficients)
    return theta


def _unidentified(design: Design, theta: Array) -> dict[str, str]:
    """Parameters that can change without a first-order change of the law in any row, and why."""
    names, form = np.array(design.form.parameters), design.form
    share = solver.shares(design, theta[None])[1]
    gone = share[0].max(axis=1) < _VANISHED
    reasons = _reasons_of_terms(form, gone, "adds less than 0.1% in every row")
    # The coefficient of an absent term stays: the term could grow.
    tested = np.array([name not in reasons or name in form.coefficients for name in names])
    slopes = solver.gradients(design, share)[0][tested]
    length = np.linalg.norm(slopes, axis=1)
    sizes, directions = np.linalg.svd((slopes / np.maximum(length, 1e-300)[:, None]).T)[1:]
    for direction in directions[: len(sizes)][sizes < _FLAT]:
        moved = np.zeros(len(names), bool)
        moved[tested] = np.abs(direction) > 1e-6
        # A coefficient in the form's units changes with its exponents.
        together = names[moved @ (design.to_natural != 0).T].tolist()
        reason = f"the rows determine only {', '.join(together)} together"
        reasons |= dict.fromkeys(together, reason)
    return reasons


def _reasons_of_terms(form: Form, gone: NDArray[np.bool_], reason: str) -> dict[str, str]:
    """Reasons for the coefficients of some terms and the exponents that no other term has."""
    others = [term for term, absent in zip(form.terms, gone, strict=True) if not absent]
    determined = {exponent for term in others for _, exponent in term.powers}
    reasons = {}
    for term, absent in zip(form.terms, gone, strict=True):
        names = (term.coefficient, *dict(term.powers).values()) if absent else ()
        unidentified = [name for name in names if name not in determined]
        reasons |= dict.fromkeys(unidentified, f"the term of {term.coefficient} {reason}")
    return reasons


def fit(table: Table, form: Form, resamples: int = 1000, *, seed: int = 0) -> Fit:
    """Returns the optimum with 95% intervals from a bootstrap over the table's groups (Efron 1979).

    Every group counts equally. The descents of a resample start at the optimum of the table and at
    those of the law without one term. Raises UserError for fewer different points than parameters,
    and for too few groups to resample.
    """
    found = optimum(table, form)
    rng = np.random.default_rng(seed)
    counts = _resamples(found, table, resamples, rng)
    weights, log_loss = counts[:, table.groups] * table.weights, np.log(table.loss)
    best, lowest = np.empty((resamples, len(found.theta))), np.full(resamples, np.inf)
    absent, reached = _optima_without_terms(found.design, table, found.theta)
    # At the objective of the optimum itself, the absent term has grown again.
    others = (reached > found.objective * (1 + 1e-6)) & (reached < _NEAR * found.objective)
    for start in (found.theta, *absent[others]):
        starts = np.tile(start, (resamples, 1))
        theta, value = solver.minimize(found.design, log_loss, weights, starts)
        best = np.where((value < lowest)[:, None], theta, best)
        lowest = np.minimum(value, lowest)
    replicates = found.design.natural(best)
    unidentified = _unbounded(found, best, replicates) | dict(found.unidentified)
    parameters = {
        name: Parameter(None, reason=unidentified[name])
        if name in unidentified
        else interval(value, replicates[:, i])
        for i, (name, value) in enumerate(
            zip(found.form.parameters, found.values.tolist(), strict=True)
        )
    }
    return Fit(found, replicates, parameters, _notes(table, len(parameters)))


def _notes(table: Table, parameters: int) -> tuple[str, ...]:
    """What makes intervals too narrow: few runs, and rows that are not independent."""
    groups, notes = int(table.groups.max()) + 1, []
    if 4 * parameters > groups:
        counted = f"{parameters} parameters for {groups} runs, more than a quarter"
        notes.append(f"{counted}: intervals may be too narrow")
    if repeats := table.repeats:
        which = f"{len(repeats)} of {len(table)} rows repeat another (line {repeats[0][0]} repeats"
        hint = "remove copies, or name with --group what rows of one run share"
        notes.append(f"{which} line {repeats[0][1]}): intervals are too narrow; {hint}")
    return tuple(notes)


def _resamples(found: Optimum, table: Table, wanted: int, rng: np.random.Generator) -> Array:
    """The number of copies of each group [r g] in resamples of the rank of the table.

    A resample of a lower rank has lost, say, all but two model sizes. Its optimum is wherever the
    descent starts, which would make the interval too narrow.
    """
    groups = int(table.groups.max()) + 1
    if groups < len(found.theta) + 2:
        raise UserError(
            f"{groups} runs are too few for intervals of {len(found.theta)} parameters",
            hint=_SIMPLIFY,
        )
    slopes = solver.gradients(found.design, solver.shares(found.design, found.theta[None])[1])[0]
    slopes = slopes / np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1e-300)
    by_group = np.stack(
        [slopes[:, table.groups == g] @ slopes[:, table.groups == g].T for g in range(groups)]
    )

    def rank(present: Array) -> NDArray[np.intp] | np.intp:
        """The rank of the gradients of the present groups, [r] for [r g]."""
        return (np.linalg.eigvalsh(np.tensordot(present, by_group, 1)) > _FLAT**2).sum(-1)

    accepted: list[Array] = []
    for _ in range(_MAX_TRIES):
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=wanted).astype(float)
        accepted.append(drawn[rank(np.sign(drawn)) >= rank(np.ones(groups))])
        if sum(map(len, accepted)) >= wanted:
            return np.concatenate(accepted)[:wanted]
    raise UserError(f"few resamples of {groups} runs determine {found.form.name}", hint=_SIMPLIFY)


def _unbounded(found: Optimum, theta: Array, replicates: Array) -> dict[str, str]:
    """Parameters whose interval reaches a bound, and why, from resamples [r p].

    theta: in the coordinates of the fit. replicates: in the units of the form.
    """
    design = found.design
    ends = [_ends(value, x) for value, x in zip(found.values.tolist(), replicates.T, strict=True)]
    below = {name: end[0] for name, end in zip(design.form.parameters, ends, strict=True)}
    above = {name: 1 - end[1] for name, end in zip(design.form.parameters, ends, strict=True)}
    share = np.concatenate(
        [solver.shares(design, at)[1].max(axis=2) for at in np.array_split(theta, 20)]
    )  # [r k]
    gone = (share < _VANISHED).mean(axis=0) > [below[name] for name in design.form.coefficients]
    reason = "cannot be distinguished from 0, where its interval begins"
    reasons = _reasons_of_terms(design.form, gone, reason)
    for name, x in zip(design.form.parameters, theta.T, strict=True):
        for end, tail in zip(solver.EXPONENTS, (below[name], above[name]), strict=True):
            if name in design.form.exponents and (np.abs(x - end) < 1e-6).mean() > tail:
                coefficients = [
                    term.coefficient
                    for term in design.form.terms
                    if name in dict(term.powers).values()
                ]
                reason = f"the interval of {name} has no end: it reaches {end:g}"
                reasons = dict.fromkeys((name, *coefficients), reason) | reasons
    return reasons


def _ends(value: float, replicates: Array) -> tuple[float, float]:
    """The quantiles of the interval, 2.5 and 97.5%, corrected for bias (Efron 1981).

    The optimum may differ from the median of its replicates. Plain percentiles cover 98% instead of
    95%, since a resample of rows makes the median-like Huber optimum jump between fewer rows.
    """
    normal, r = NormalDist(), len(replicates)
    under = float((replicates < value).mean() + (replicates == value).mean() / 2)
    shift = 2 * normal.inv_cdf(min(max(under, 1 / r), 1 - 1 / r))
    low, high = normal.inv_cdf((1 - COVERAGE) / 2), normal.inv_cdf((1 + COVERAGE) / 2)
    return normal.cdf(shift + low), normal.cdf(shift + high)


def interval(value: float, replicates: Array) -> Parameter:
    """Returns a value with its 95% interval and the standard deviation of its replicates [r].

    Coefficients have one heavy tail, which the interval describes better than the deviation. An
    infinite interval gives a parameter without a value, an infinite deviation None.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = np.quantile(replicates, _ends(value, replicates)).tolist()
        stderr = float(replicates.std(ddof=1))
    if not np.isfinite([value, low, high]).all():
        return Parameter(None, reason="its interval has no end")
    return Parameter(value, stderr if np.isfinite(stderr) else None, low, high)
