"""The compute-optimal size and data of a fitted law, and the bias of isoFLOP parabolas.

With C = k N D the least loss of E + A N^-alpha + B D^-beta at a budget C is at (Hoffmann et al.
2022, eq. 4)

    N = G (C/k)^a,                 G = (alpha A / (beta B))^(1/(alpha+beta)),
    D = (C/k)^b / G,               a = beta/(alpha+beta),   b = 1 - a.

k is 6 where D counts tokens and attention does not count. Where D counts images, k is the FLOPs
that training spends on one image per parameter (`mforce plan` prints the FLOPs of a step;
attention makes k depend on N a little).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modality_forcing.laws.fit import Fit, Parameter, interval
from modality_forcing.laws.forms import Array
from modality_forcing.laws.table import Table

TOKENS = 6.0  # k, FLOPs a parameter and token: Kaplan et al. 2020 (2001.08361), section 2.1
NEAR = 0.05  # decades around a budget within which rows are on its isoFLOP line
_APART = 0.25  # decades between such budgets, at least
_LINES = 6  # budgets of the isoFLOP view
_LEAST = 5  # different sizes on a line
Values = Array | np.float64  # of one parameter: [r] of resamples, a scalar of the optimum


@dataclass(frozen=True)
class Budget:
    """The best use of C FLOPs, with 95% intervals."""

    flops: float
    N: Parameter
    D: Parameter
    loss: Parameter


@dataclass(frozen=True)
class Allocation:
    """How the best N and D grow with the budget: N ~ C^a, D ~ C^b."""

    k: float
    a: Parameter
    b: Parameter
    budgets: tuple[Budget, ...]


@dataclass(frozen=True)
class IsoFlopCurve:
    """One budget of the isoFLOP view: the sizes N at the minimum of three curves.

    law: the closed form. through_law: a parabola in log N through the fitted law itself at the
    sizes that the rows have, so that its distance from the closed form is the parabola's own bias.
    through_rows: a parabola through the rows. None where a parabola opens downward.
    """

    flops: float
    rows: tuple[int, ...]  # of the table
    law: float
    through_law: float | None
    through_rows: float | None

    @property
    def bias(self) -> float | None:
        """The parabola's N over the true one of the same law, without any noise."""
        return None if self.through_law is None else self.through_law / self.law


@dataclass(frozen=True)
class IsoFlop:
    """The lines, and the exponent a that their parabolas would give of a law whose a is known."""

    k: float
    lines: tuple[IsoFlopCurve, ...]
    a_law: float
    a_through_law: float | None  # None with fewer than two parabolas
    a_through_rows: float | None


def applies(fit: Fit) -> bool:
    """Whether the law has the form and its parameters are known."""
    needed = ("A", "alpha", "B", "beta")
    return fit.form.variables == ("N", "D") and all(
        name in fit.parameters and fit.parameters[name].identified for name in needed
    )


def allocate(fit: Fit, k: float, budgets: Sequence[float]) -> Allocation:
    """Returns the best N and D at each budget, in FLOPs; the fit must be one that `applies`."""
    at, spread = fit.optimum.values, fit.replicates
    a = _exponent(fit, at), _exponent(fit, spread)
    rows = []
    for flops in budgets:
        with np.errstate(
            all="ignore"
        ):  # a resample whose exponent is 0 gives all to one of N and D
            best = [
                (*_best(fit, parameters, k, flops), _least(fit, parameters, k, flops))
                for parameters in (at, spread)
            ]
        rows.append(
            Budget(
                flops,
                *(
                    interval(float(value), np.asarray(values))
                    for value, values in zip(*best, strict=True)
                ),
            )
        )
    return Allocation(
        k,
        interval(float(a[0]), np.asarray(a[1])),
        interval(float(1 - a[0]), np.asarray(1 - a[1])),
        tuple(rows),
    )


def decades(table: Table, k: float) -> list[float]:
    """Returns the powers of ten from below the table's least budget to one above its greatest."""
    flops = np.log10(k * table.variables["N"] * table.variables["D"])
    return [
        float(f"1e{power}")
        for power in range(int(np.floor(flops.min())), int(np.ceil(flops.max())) + 1)
    ]


def isoflop(table: Table, fit: Fit, k: float) -> IsoFlop:
    """Returns the budgets at which many rows lie, and what parabolas (Hoffmann et al. 2022,
    approach 2) make of them.

    Parabolas are biased wherever alpha and beta differ or the sizes are not centred on the best
    one (Czech et al., 2603.22339).
    """
    lines = tuple(
        sorted(
            (_curve(table, fit, k, *found) for found in _isoflop_budgets(table, k)),
            key=lambda line: line.flops,
        )
    )
    slope = lambda name: _slope([(line.flops, getattr(line, name)) for line in lines])
    return IsoFlop(
        k,
        lines,
        float(_exponent(fit, fit.optimum.values)),
        slope("through_law"),
        slope("through_rows"),
    )


def _named(fit: Fit, parameters: Array) -> dict[str, Values]:
    """Parameters [... p] by name."""
    return dict(zip(fit.form.parameters, np.moveaxis(parameters, -1, 0), strict=True))


def _exponent(fit: Fit, parameters: Array) -> Values:
    """The exponent a of N for parameters [... p]."""
    p = _named(fit, parameters)
    with np.errstate(invalid="ignore"):
        return p["beta"] / (p["alpha"] + p["beta"])


def _best(fit: Fit, parameters: Array, k: float, flops: float) -> tuple[Values, Values]:
    """N and D of the closed form."""
    p = _named(fit, parameters)
    g = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    size = g * (flops / k) ** _exponent(fit, parameters)
    return size, flops / k / size


def _least(fit: Fit, parameters: Array, k: float, flops: float) -> Values:
    """The loss there."""
    p, (size, data) = _named(fit, parameters), _best(fit, parameters, k, flops)
    return p.get("E", 0) + p["A"] * size ** -p["alpha"] + p["B"] * data ** -p["beta"]


def _isoflop_budgets(table: Table, k: float) -> list[tuple[float, NDArray[np.intp]]]:
    """Budgets with at least five different sizes near them and those rows, the most crowded first;
    no row is in two.
    """
    logs = np.log10(k * table.variables["N"] * table.variables["D"])
    free, found = np.ones(len(logs), bool), []
    while free.any() and len(found) < _LINES:
        near = (np.abs(logs[:, None] - logs) <= NEAR) & free & free[:, None]
        rows = np.flatnonzero(near[near.sum(axis=1).argmax()])
        if len(np.unique(np.round(np.log(table.variables["N"][rows]), 6))) < _LEAST:
            break
        found.append((float(10 ** np.median(logs[rows])), rows))
        free &= np.abs(logs - np.log10(found[-1][0])) > _APART
    return found


def _curve(table: Table, fit: Fit, k: float, flops: float, rows: NDArray[np.intp]) -> IsoFlopCurve:
    size = table.variables["N"][rows]
    law = np.exp(fit.predict({"N": size, "D": flops / k / size}))
    best = float(_best(fit, fit.optimum.values, k, flops)[0])
    return IsoFlopCurve(
        flops,
        tuple(rows.tolist()),
        best,
        parabola(size, law)[0],
        parabola(size, table.loss[rows])[0],
    )


def parabola(size: Array, loss: Array) -> tuple[float | None, Array]:
    """Returns the N at the minimum of the parabola in log N through some losses, if it has one,
    and its coefficients [3].
    """
    middle = np.log(size).mean()
    curve = np.polyfit(np.log(size) - middle, loss, 2)
    lowest = float(np.exp(middle - curve[1] / (2 * curve[0]))) if curve[0] > 0 else None
    return lowest, np.array(
        [curve[0], curve[1] - 2 * curve[0] * middle, np.polyval(curve, -middle)], np.float64
    )


def _slope(points: Sequence[tuple[float, float | None]]) -> float | None:
    """The exponent of the power law through the minima."""
    logs = np.log([(flops, size) for flops, size in points if size is not None])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0]) if len(logs) > 1 else None
