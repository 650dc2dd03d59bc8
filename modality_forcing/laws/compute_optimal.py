"""The compute-optimal size and data of a fitted law, and the bias of isoFLOP parabolas.

With C = k N D, the lowest loss of E + A N^-alpha + B D^-beta at a budget C is at (Hoffmann et al.
2022, eq. 4)

    N = G (C/k)^a,                 G = (alpha A / (beta B))^(1/(alpha+beta)),
    D = (C/k)^b / G,               a = beta/(alpha+beta),   b = 1 - a.

k is 6 where D counts tokens and attention is ignored. Where D counts images, k is the training
FLOPs per image and parameter (`mforce plan` prints the FLOPs of a step; attention makes k depend
on N a little).
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
NEAR = 0.05  # rows within so many decades of a budget are on its isoFLOP line
_MIN_DISTANCE = 0.25  # decades between two budgets
_MAX_LINES = 6  # budgets of the isoFLOP view
_MIN_SIZES = 5  # different sizes on a line
Values = Array | np.float64  # of one parameter: [r] of resamples, a scalar of the optimum


@dataclass(frozen=True)
class Budget:
    """The compute-optimal N and D of one budget and their loss, with 95% intervals."""

    flops: float
    N: Parameter
    D: Parameter
    loss: Parameter


@dataclass(frozen=True)
class Allocation:
    """The exponents of compute-optimal N and D, N ~ C^a and D ~ C^b, and some budgets."""

    k: float
    a: Parameter
    b: Parameter
    budgets: tuple[Budget, ...]


@dataclass(frozen=True)
class IsoFlopCurve:
    """One budget of the isoFLOP view: the sizes N at the minimum of three curves.

    law: the closed form. through_law: a parabola in log N through the fitted law at the sizes of
    the rows; its distance from the closed form is the bias of the parabola. through_rows: a
    parabola through the rows. None where a parabola opens downward.
    """

    flops: float
    rows: tuple[int, ...]  # of the table
    law: float
    through_law: float | None
    through_rows: float | None

    @property
    def bias(self) -> float | None:
        """The N of the parabola through the noiseless law, divided by the N of the law."""
        return None if self.through_law is None else self.through_law / self.law


@dataclass(frozen=True)
class IsoFlop:
    """The isoFLOP curves, and the exponent a of the law and of their parabolas."""

    k: float
    lines: tuple[IsoFlopCurve, ...]
    a_law: float
    a_through_law: float | None  # None with fewer than two parabolas
    a_through_rows: float | None


def applies(fit: Fit) -> bool:
    """Whether the form is E + A N^-alpha + B D^-beta and the rows identify its parameters."""
    needed = ("A", "alpha", "B", "beta")
    return fit.form.variables == ("N", "D") and all(
        name in fit.parameters and fit.parameters[name].identified for name in needed
    )


def allocate(fit: Fit, k: float, budgets: Sequence[float]) -> Allocation:
    """Returns the compute-optimal N and D of each budget in FLOPs, of a fit that `applies`."""
    at, spread = fit.optimum.values, fit.replicates
    a = _exponent(fit, at), _exponent(fit, spread)
    rows = []
    for flops in budgets:
        # A resample whose exponent is 0 has an infinite N or D.
        with np.errstate(all="ignore"):
            best = [
                (*_best(fit, parameters, k, flops), _lowest_loss(fit, parameters, k, flops))
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
    """Returns the powers of ten that enclose the budgets of the table."""
    flops = np.log10(k * table.variables["N"] * table.variables["D"])
    return [
        float(f"1e{power}")
        for power in range(int(np.floor(flops.min())), int(np.ceil(flops.max())) + 1)
    ]


def isoflop(table: Table, fit: Fit, k: float) -> IsoFlop:
    """Returns the budgets that many rows share, with their parabolas.

    The parabolas (Hoffmann et al. 2022, approach 2) are biased where alpha and beta differ or the
    sizes are not centered on the best one (Czech et al., 2603.22339).
    """
    lines = tuple(
        sorted(
            (
                _curve(table, fit, k, flops=flops, rows=rows)
                for flops, rows in _isoflop_budgets(table, k)
            ),
            key=lambda line: line.flops,
        )
    )
    return IsoFlop(
        k,
        lines,
        float(_exponent(fit, fit.optimum.values)),
        _slope([(line.flops, line.through_law) for line in lines]),
        _slope([(line.flops, line.through_rows) for line in lines]),
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


def _lowest_loss(fit: Fit, parameters: Array, k: float, flops: float) -> Values:
    """The loss at the compute-optimal N and D."""
    p, (size, data) = _named(fit, parameters), _best(fit, parameters, k, flops)
    return p.get("E", 0) + p["A"] * size ** -p["alpha"] + p["B"] * data ** -p["beta"]


def _isoflop_budgets(table: Table, k: float) -> list[tuple[float, NDArray[np.intp]]]:
    """Budgets with at least five different sizes, and their rows, those of most rows first.

    No row belongs to two budgets.
    """
    logs = np.log10(k * table.variables["N"] * table.variables["D"])
    free, found = np.ones(len(logs), bool), []
    while free.any() and len(found) < _MAX_LINES:
        near = (np.abs(logs[:, None] - logs) <= NEAR) & free & free[:, None]
        rows = np.flatnonzero(near[near.sum(axis=1).argmax()])
        if len(np.unique(np.round(np.log(table.variables["N"][rows]), 6))) < _MIN_SIZES:
            break
        found.append((float(10 ** np.median(logs[rows])), rows))
        free &= np.abs(logs - np.log10(found[-1][0])) > _MIN_DISTANCE
    return found


def _curve(
    table: Table, fit: Fit, k: float, *, flops: float, rows: NDArray[np.intp]
) -> IsoFlopCurve:
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
    """Returns the minimum and the coefficients [3] of a parabola in log N through losses [n].

    The minimum, an N, is None where the parabola opens downward.
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
