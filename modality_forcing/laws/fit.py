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

COVERAGE = 0.95  # of every interval
_EXPONENTS = (0.05, 0.15, 0.3, 0.5, 0.8, 1.3, 2.2)  # where the search begins, for each exponent
_REFINED = 16  # of those starts, the best
_VANISHED = (
    1e-3  # a term below this share of the law in every row is absent as far as the table knows
)
_FLAT = 1e-6  # a singular value, of gradients of length 1, that is 0 but for rounding
_NEAR = 2.0  # times the objective: a law less a term that comes so close may be the best one of a resample
_SIMPLIFY = "add runs, or leave a term or a variable out of the form: FORM-TERM"
_TRIES = 20  # draws for each resample that is wanted, at most


@dataclass(frozen=True)
class Parameter:
    """What the table tells of a parameter: a value with its 95% interval, or nothing and why."""

    value: float | None
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""  # it is not identified

    @property
    def identified(self) -> bool:
        """Whether the table determines it."""
        return not self.why


@dataclass(frozen=True)
class Optimum:
    """The parameters of least objective; some may be arbitrary, which `unidentified` says."""

    design: Design
    theta: Array  # [p]
    objective: float
    unidentified: Mapping[str, str]  # parameter -> why the rows cannot determine it

    @property
    def form(self) -> Form:
        """The form without levels at 0 that no row has."""
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
    notes: tuple[str, ...] = ()  # what to know before believing the intervals

    @property
    def form(self) -> Form:
        """What was fitted."""
        return self.optimum.form

    def predict(self, variables: Mapping[str, ArrayLike]) -> Array:
        """Returns the log of the law [n]; it is determined where the table is, even if single
        parameters are not.
        """
        return self.form.predict(self.optimum.values, variables)

    def band(self, variables: Mapping[str, ArrayLike]) -> Array:
        """Returns the ends of the pointwise 95% interval of the log of the law [2 n]: of the law,
        not of single runs.
        """
        tail = (1 - COVERAGE) / 2
        return np.quantile(self.form.predict(self.replicates, variables), [tail, 1 - tail], axis=0)


def optimum(table: Table, form: Form, start: Mapping[str, float] | None = None) -> Optimum:
    """Returns the best of many descents, from a grid of exponents and, where given, from a start
    of the caller's.

    start: every parameter's value. Raises UserError for fewer different points than parameters.
    """
    form = form.seen_by(table.variables)
    points = np.unique(np.stack([table.variables[name] for name in form.variables]), axis=1).shape[
        1
    ]
    if points < len(form.parameters):
        told = f"{points} different points cannot determine the {len(form.parameters)} parameters of {form.name}"
        raise UserError(told, hint=_SIMPLIFY)
    design, log_loss = Design.of(form, table.variables), np.log(table.loss)
    grid = project(
        design, table.loss, np.array(list(product(_EXPONENTS, repeat=len(form.exponents))))
    )
    reached = solver.objective(design, log_loss, table.weights, grid)
    starts = grid[np.argsort(reached, kind="stable")[:_REFINED]]
    if start is not None:
        own = design.theta(np.array([start[name] for name in form.parameters]))
        starts = np.concatenate([starts, own[None]])
    theta, value = _descend(design, table, starts)
    absent, reached = _optima_without_terms(design, table, theta[value.argmin()])
    theta, value = np.concatenate([theta, absent]), np.concatenate([value, reached])
    theta, value = _descend(design, table, theta[[value.argmin()]], most=2000)
    return Optimum(design, theta[0], float(value[0]), _unidentified(design, theta[0]))


def _descend(design: Design, table: Table, starts: Array, most: int = 200) -> tuple[Array, Array]:
    return solver.minimize(
        design, np.log(table.loss), np.tile(table.weights, (len(starts), 1)), starts, most
    )


def _optima_without_terms(design: Design, table: Table, theta: Array) -> tuple[Array, Array]:
    """The optima [k p] with one term absent each, and their values [k].

    Where a term is best absent, the way there along the log of its coefficient is endless, and its
    exponent shifts all the way.
    """
    starts = np.tile(theta, (int(design.is_coefficient.sum()), 1))
    starts[
        np.arange(len(starts)), np.flatnonzero(design.is_coefficient)
    ] = -np.inf  # the box has a floor
    return _descend(design, table, starts)


def project(design: Design, loss: Array, exponents: Array) -> Array:
    """Returns theta [b p] with the coefficients that suit exponents [b q] best in least squares of
    relative residuals.

    Variable projection (Golub & Pereyra 1973): given the exponents the law is linear in its
    coefficients, none below 0.
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
    length = np.maximum(
        np.linalg.norm(terms, axis=1, keepdims=True), 1e-300
    )  # columns of one length are solved best
    found = (
        np.stack([nnls(columns, np.ones(len(loss)))[0] for columns in terms / length])
        / length[:, 0]
    )
    alive = np.clip(
        found, 1e-3 * np.median(loss), 1e3 * loss.max()
    )  # a term at 0 has no gradient to grow by
    theta[:, is_coefficient] = np.log(alive)
    return theta


def _unidentified(design: Design, theta: Array) -> dict[str, str]:
    """Parameters that could change without changing the law in any row, to first order, and why."""
    names, form = np.array(design.form.parameters), design.form
    share = solver.shares(design, theta[None])[1]
    gone = share[0].max(axis=1) < _VANISHED
    told = _reasons_of_terms(form, gone, "adds less than 0.1% in every row")
    asked = np.array(
        [name not in told or name in form.coefficients for name in names]
    )  # an absent term could come back
    slopes = solver.gradients(design, share)[0][asked]
    length = np.linalg.norm(slopes, axis=1)
    sizes, directions = np.linalg.svd((slopes / np.maximum(length, 1e-300)[:, None]).T)[1:]
    for direction in directions[: len(sizes)][sizes < _FLAT]:
        moved = np.zeros(len(names), bool)
        moved[asked] = np.abs(direction) > 1e-6
        together = names[
            moved @ (design.to_natural != 0).T
        ]  # a coefficient in the form's units moves with its exponents
        told |= {
            name: f"the rows tell only {', '.join(together)} together" for name in together.tolist()
        }
    return told


def _reasons_of_terms(form: Form, gone: NDArray[np.bool_], why: str) -> dict[str, str]:
    """Why the coefficients of some terms are not told, nor the exponents that no other term has."""
    left = {
        exponent
        for term, heldout_mask in zip(form.terms, gone, strict=True)
        if not heldout_mask
        for _, exponent in term.powers
    }
    terms = [term for term, heldout_mask in zip(form.terms, gone, strict=True) if heldout_mask]
    told = {term.coefficient: (term.coefficient, *dict(term.powers).values()) for term in terms}
    return {
        name: f"the term of {c} {why}"
        for c, names in told.items()
        for name in names
        if name not in left
    }


def fit(
    table: Table,
    form: Form,
    resamples: int = 1000,
    seed: int = 0,
    start: Mapping[str, float] | None = None,
) -> Fit:
    """Returns the optimum with 95% intervals from a bootstrap over the table's groups (Efron 1979).

    Every group counts equally. A resample's descents start at the table's optimum and at those of
    the law less one term. Raises UserError for fewer different points than parameters, and for too
    few groups to resample.
    """
    found = optimum(table, form, start)
    rng = np.random.default_rng(seed)
    counts = _resamples(found, table, resamples, rng)
    weights, log_loss = counts[:, table.groups] * table.weights, np.log(table.loss)
    best, least = np.empty((resamples, len(found.theta))), np.full(resamples, np.inf)
    absent, reached = _optima_without_terms(found.design, table, found.theta)
    others = (reached > found.objective * (1 + 1e-6)) & (
        reached < _NEAR * found.objective
    )  # else the term came back
    for start_of_all in (found.theta, *absent[others]):
        theta, value = solver.minimize(
            found.design, log_loss, weights, np.tile(start_of_all, (resamples, 1))
        )
        best, least = np.where((value < least)[:, None], theta, best), np.minimum(value, least)
    replicates = found.design.natural(best)
    unidentified = _unbounded(found, best, replicates) | dict(found.unidentified)
    parameters = {
        name: Parameter(None, why=unidentified[name])
        if name in unidentified
        else interval(value, replicates[:, i])
        for i, (name, value) in enumerate(
            zip(found.form.parameters, found.values.tolist(), strict=True)
        )
    }
    groups, notes = counts.shape[1], ()
    if 4 * len(parameters) > groups:
        notes = (
            f"{len(parameters)} parameters for {groups} runs, more than a quarter: intervals may be too narrow",
        )
    return Fit(found, replicates, parameters, notes)


def _resamples(found: Optimum, table: Table, wanted: int, rng: np.random.Generator) -> Array:
    """How often each group is drawn [r g], in resamples that determine as many directions of theta
    as the table does.

    Others have lost, say, all but two sizes of model. Their optimum is wherever the descent
    starts, which would pass for certainty.
    """
    groups = int(table.groups.max()) + 1
    if groups < len(found.theta) + 2:
        raise UserError(
            f"{groups} runs say nothing of the errors of {len(found.theta)} parameters",
            hint=_SIMPLIFY,
        )
    slopes = solver.gradients(found.design, solver.shares(found.design, found.theta[None])[1])[0]
    slopes = slopes / np.maximum(np.linalg.norm(slopes, axis=1, keepdims=True), 1e-300)
    by_group = np.stack(
        [slopes[:, table.groups == g] @ slopes[:, table.groups == g].T for g in range(groups)]
    )
    rank = lambda there: (np.linalg.eigvalsh(np.tensordot(there, by_group, 1)) > _FLAT**2).sum(-1)
    kept: list[Array] = []
    for _ in range(_TRIES):
        drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=wanted).astype(float)
        kept.append(drawn[rank(np.sign(drawn)) >= rank(np.ones(groups))])
        if sum(map(len, kept)) >= wanted:
            return np.concatenate(kept)[:wanted]
    raise UserError(
        f"hardly any resample of {groups} runs determines {found.form.name}", hint=_SIMPLIFY
    )


def _unbounded(found: Optimum, theta: Array, replicates: Array) -> dict[str, str]:
    """Parameters whose interval reaches the end of what is possible, and why; of resamples [r p],
    as theta and in units.
    """
    design, told = found.design, dict[str, str]()
    ends = [_ends(value, x) for value, x in zip(found.values.tolist(), replicates.T, strict=True)]
    below = {name: end[0] for name, end in zip(design.form.parameters, ends, strict=True)}
    above = {name: 1 - end[1] for name, end in zip(design.form.parameters, ends, strict=True)}
    share = np.concatenate(
        [solver.shares(design, at)[1].max(axis=2) for at in np.array_split(theta, 20)]
    )  # [r k]
    gone = (share < _VANISHED).mean(axis=0) > [below[name] for name in design.form.coefficients]
    told |= _reasons_of_terms(design.form, gone, "cannot be told from 0, where its interval begins")
    for name, x in zip(design.form.parameters, theta.T, strict=True):
        for end, tail in zip(solver.EXPONENTS, (below[name], above[name]), strict=True):
            if name in design.form.exponents and (np.abs(x - end) < 1e-6).mean() > tail:
                beside = [
                    term.coefficient
                    for term in design.form.terms
                    if name in dict(term.powers).values()
                ]
                told = (
                    dict.fromkeys(
                        (name, *beside), f"the interval of {name} has no end: it reaches {end:g}"
                    )
                    | told
                )
    return told


def _ends(value: float, replicates: Array) -> tuple[float, float]:
    """Which quantiles of the replicates bound the interval: those of 2.5 and 97.5%, corrected for
    bias (Efron 1981).

    The optimum may lie off the middle of its replicates. Plain percentiles cover 98% where 95% are
    meant, since a resample of rows makes the median-like Huber optimum jump between fewer rows.
    """
    normal, r = NormalDist(), len(replicates)
    under = float((replicates < value).mean() + (replicates == value).mean() / 2)
    shift = 2 * normal.inv_cdf(min(max(under, 1 / r), 1 - 1 / r))
    return normal.cdf(shift + normal.inv_cdf((1 - COVERAGE) / 2)), normal.cdf(
        shift + normal.inv_cdf((1 + COVERAGE) / 2)
    )


def interval(value: float, replicates: Array) -> Parameter:
    """Returns a value with its 95% interval and the standard deviation of its replicates [r].

    Coefficients have one heavy tail, of which the interval says more than the deviation; it is
    None where it has no end.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = np.quantile(replicates, _ends(value, replicates)).tolist()
        stderr = float(replicates.std(ddof=1))
    if not np.isfinite([value, low, high]).all():
        return Parameter(None, why="its interval has no end")
    return Parameter(value, stderr if np.isfinite(stderr) else None, low, high)
