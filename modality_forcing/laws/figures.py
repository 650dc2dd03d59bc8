"""The figure of a fit: the law with its band, the residuals and the isoFLOP view."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from modality_forcing.laws import compute_optimal
from modality_forcing.laws.fit import Fit
from modality_forcing.laws.forms import Array
from modality_forcing.laws.table import Table
from modality_forcing.viz import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMOOTH = 80  # points of a line
_GROUPS = 5  # lines of the law, at most
_BEYOND = 10.0  # how far past the runs a law is drawn
_BAND = 0.2  # opacity


def plot(fit: Fit, table: Table, view: compute_optimal.IsoFlop | None = None) -> Figure:
    """Returns the figure, over two columns of a page; draw it, and save it, inside
    `figures.style()`.
    """
    lines = view is not None and bool(view.lines)
    figure = figures.new_figure(2, height=2.3)
    panels = figure.subplots(
        1, 3 if lines else 2, width_ratios=(1.1, 0.8, 1.1) if lines else (1.2, 1)
    )
    if view is not None:
        _frontier(panels[0], fit, table, view.k)
    else:
        _law(panels[0], fit, table)
    _residuals(panels[1], fit, table)
    if view is not None and lines:
        _isoflop(panels[2], fit, table, view)
    return figure


def _frontier(axes: Axes, fit: Fit, table: Table, k: float) -> None:
    """The least loss of every budget, and the runs, which lie on or above it."""
    flops = k * table.variables["N"] * table.variables["D"]
    axes.plot(
        flops,
        table.loss,
        "o",
        color=figures.GRAY,
        markersize=1.8,
        alpha=0.5,
        markeredgewidth=0,
        label="runs",
    )
    x = np.geomspace(flops.min(), flops.max() * _BEYOND, _SMOOTH)
    best = compute_optimal.allocate(fit, k, x.tolist()).budgets
    axes.plot(
        x,
        [row.loss.value or np.nan for row in best],
        color=figures.COLORS[0],
        label="law at the best N",
    )
    low, high = ([getattr(row.loss, end) for row in best] for end in ("low", "high"))
    axes.fill_between(x, low, high, color=figures.COLORS[0], alpha=_BAND, linewidth=0, label="95%")
    axes.axvline(flops.max(), color=figures.GRAY, linewidth=0.6, linestyle=":")
    _logarithmic(axes, "training FLOPs, C", "loss")
    axes.set_title("Law and runs")
    axes.legend(loc="upper right")


def _law(axes: Axes, fit: Fit, table: Table) -> None:
    """Loss against one variable, a line with its band for each value of a second; of a third, only
    its greatest value.
    """
    names = fit.form.variables
    along = "n" if "n" in names else names[0]
    by = next((name for name in names if name != along), None)
    rows = np.ones(len(table), bool)
    for name in names:
        if name not in (along, by):
            rows &= table.variables[name] == table.variables[name].max()
    table = table.select(rows)
    none_at = _none_at(table.variables[along])
    for i, (value, there) in enumerate(
        _groups(None if by is None else table.variables[by], len(table))
    ):
        color, part = figures.COLORS[i], table.select(there)
        fixed = {name: part.variables[name].max() for name in names if name not in (along, by)} | (
            {by: value} if by else {}
        )
        label = f"{by} = {figures.format_count(value)}" if by else "runs"
        x = np.where(part.variables[along] > 0, part.variables[along], none_at)
        axes.plot(x, part.loss, figures.MARKERS[i], color=color, label=label, markeredgewidth=0)
        _line_and_band(axes, fit, along, fixed, part.variables[along], none_at, color)
    _logarithmic(axes, ", ".join(filter(None, (along, fit.form.meaning[along]))), "loss")
    if np.any(table.variables[along] == 0):
        _mark_none(axes, table.variables[along], none_at)
    rest = ", ".join(
        f"{name} = {figures.format_count(table.variables[name].max())}"
        for name in names
        if name not in (along, by)
    )
    axes.set_title("Law with 95% band, and runs" + (f", {rest}" if rest else ""))
    axes.legend(loc="best")


def _line_and_band(
    axes: Axes,
    fit: Fit,
    along: str,
    fixed: Mapping[str, float],
    there: Array,
    none_at: float,
    color: str,
) -> None:
    """The law where the variable is above 0, as far as the runs; a bar where it is 0."""
    pieces = []
    if np.any(there > 0):
        x = np.geomspace(there[there > 0].min(), there.max(), _SMOOTH)
        pieces.append((x, x))
    if np.any(there == 0):
        pieces.append((np.array([none_at / 1.3, none_at * 1.3]), np.zeros(2)))
    for place, x in pieces:
        at = {along: x} | {name: np.full(len(x), value) for name, value in fixed.items()}
        low, high = np.exp(fit.band(at))
        axes.plot(place, np.exp(fit.predict(at)), color=color)
        axes.fill_between(place, low, high, color=color, alpha=_BAND, linewidth=0)


def _none_at(x: Array) -> float:
    """Where 0 is drawn on a logarithmic axis: half a decade or more before the first other value."""
    above = np.unique(x[x > 0])
    return (
        float(above[0] / max(3.0, above[1] / above[0] if len(above) > 1 else 3.0))
        if len(above)
        else 1.0
    )


def _mark_none(axes: Axes, x: Array, none_at: float) -> None:
    """Ticks at the powers of ten among the values above 0 (at these, where there is no such
    power), and one that says none.
    """
    from matplotlib.ticker import NullLocator

    above = np.log10(x[x > 0]) if np.any(x > 0) else np.array([])
    powers = (
        range(int(np.ceil(above.min() - 1e-9)), int(np.floor(above.max() + 1e-9)) + 1)
        if len(above)
        else ()
    )
    ticks = {10.0**power: f"$10^{{{power}}}$" for power in powers} or {
        v: figures.format_count(v) for v in np.unique(x[x > 0]).tolist()
    }
    axes.set_xticks([none_at, *ticks], ["none", *ticks.values()])
    axes.xaxis.set_minor_locator(NullLocator())


def _groups(values: Array | None, rows: int) -> list[tuple[float, NDArray[np.bool_]]]:
    """A value and a mask of rows for each line: the values there are, or the middles of five equal
    parts of more of them.
    """
    if values is None:
        return [(0.0, np.ones(rows, bool))]
    different = np.unique(values)
    if len(different) <= _GROUPS:
        return [(float(value), values == value) for value in different]
    part = np.searchsorted(np.quantile(values, np.arange(1, _GROUPS) / _GROUPS), values)
    return [
        (float(np.median(values[part == i])), part == i)
        for i in range(_GROUPS)
        if np.any(part == i)
    ]


def _residuals(axes: Axes, fit: Fit, table: Table) -> None:
    law = np.exp(fit.predict(table.variables))
    axes.axhline(0, color=figures.BLACK, linewidth=0.8)
    percent = 100 * (table.loss / law - 1)
    axes.plot(
        law, percent, "o", color=figures.COLORS[0], markersize=2.2, alpha=0.6, markeredgewidth=0
    )
    _logarithmic(axes, "loss by the law", "run over law, %", loss="x")
    axes.set_title("Residuals")


def _isoflop(axes: Axes, fit: Fit, table: Table, view: compute_optimal.IsoFlop) -> None:
    """Loss against N at each budget: runs, the law with its minimum, and the parabola through the
    runs.
    """
    for i, line in enumerate(view.lines):
        color, rows = figures.COLORS[i], list(line.rows)
        size, loss = table.variables["N"][rows], table.loss[rows]
        axes.plot(size, loss, figures.MARKERS[i], color=color, markersize=2.2, markeredgewidth=0)
        x = np.geomspace(size.min(), size.max(), _SMOOTH)
        law = lambda n, flops=line.flops: np.exp(fit.predict({"N": n, "D": flops / view.k / n}))
        axes.plot(x, law(x), color=color, linewidth=0.9)
        axes.plot(
            x,
            np.polyval(compute_optimal.parabola(size, loss)[1], np.log(x)),
            "--",
            color=color,
            linewidth=0.7,
        )
        axes.plot(
            line.law, law(np.array([line.law])), "*", color=figures.BLACK, markersize=5, zorder=3
        )
        axes.annotate(
            f"{line.flops:.1e}",
            (x[-1], law(x)[-1]),
            (4, -2),
            textcoords="offset points",
            color=color,
            fontsize=6,
        )
    _logarithmic(axes, "parameters, N", "loss")
    low, high = axes.get_ylim()
    axes.set(
        xlim=(None, axes.get_xlim()[1] * 3), ylim=(low * (low / high) ** 0.3, None)
    )  # room for the labels
    told = "dashed: parabolas through the runs"
    if biases := [100 * (line.bias - 1) for line in view.lines if line.bias is not None]:
        told += f"\nthrough the law they miss its N\nby {min(biases):+.2f} to {max(biases):+.2f}%"
    axes.text(0.03, 0.03, told, transform=axes.transAxes, fontsize=6, color=figures.GRAY)
    axes.set_title("IsoFLOP view; star: the law's best N")


def _logarithmic(axes: Axes, x: str, y: str, loss: str = "y") -> None:
    """Logarithmic axes; the one of the loss, often within a decade, has numbers and not powers."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

    axes.set(xlabel=x, ylabel=y, **{f"{name}scale": "log" for name in {"x", loss}})
    axis = axes.yaxis if loss == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
