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

_LINE_POINTS = 80
_MAX_GROUPS = 5  # lines of the law
_EXTRAPOLATION = 10.0  # the law is plotted up to so many times the largest budget
_BAND_ALPHA = 0.2


def plot(fit: Fit, table: Table, view: compute_optimal.IsoFlop | None = None) -> Figure:
    """Returns the figure, two columns wide; render and save it inside `figures.style()`."""
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
    """The lowest loss of every budget, and the runs."""
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
    x = np.geomspace(flops.min(), flops.max() * _EXTRAPOLATION, _LINE_POINTS)
    best = compute_optimal.allocate(fit, k, x.tolist()).budgets
    axes.plot(
        x,
        [row.loss.value or np.nan for row in best],
        color=figures.COLORS[0],
        label="law at the best N",
    )
    low, high = ([getattr(row.loss, end) for row in best] for end in ("low", "high"))
    axes.fill_between(
        x, low, high, color=figures.COLORS[0], alpha=_BAND_ALPHA, linewidth=0, label="95%"
    )
    axes.axvline(flops.max(), color=figures.GRAY, linewidth=0.6, linestyle=":")
    _logarithmic(axes, "training FLOPs, C", "loss")
    axes.set_title("Law and runs")
    axes.legend(loc="upper right")


def _law(axes: Axes, fit: Fit, table: Table) -> None:
    """Loss against one variable, with a line and its band for each value of a second.

    Of a third variable, only the greatest value is plotted.
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
    groups = _groups(None if by is None else table.variables[by], len(table))
    for i, (value, mask) in enumerate(groups):
        color, part = figures.COLORS[i], table.select(mask)
        fixed = {name: part.variables[name].max() for name in names if name not in (along, by)} | (
            {by: value} if by else {}
        )
        label = f"{by} = {figures.format_count(value)}" if by else "runs"
        x = np.where(part.variables[along] > 0, part.variables[along], none_at)
        axes.plot(x, part.loss, figures.MARKERS[i], color=color, label=label, markeredgewidth=0)
        _line_and_band(
            axes, fit, along, fixed, values=part.variables[along], none_at=none_at, color=color
        )
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
    *,
    values: Array,
    none_at: float,
    color: str,
) -> None:
    """The law over the range of the runs; a bar where the variable is 0."""
    pieces = []
    if np.any(values > 0):
        x = np.geomspace(values[values > 0].min(), values.max(), _LINE_POINTS)
        pieces.append((x, x))
    if np.any(values == 0):
        pieces.append((np.array([none_at / 1.3, none_at * 1.3]), np.zeros(2)))
    for position, x in pieces:
        at = {along: x} | {name: np.full(len(x), value) for name, value in fixed.items()}
        low, high = np.exp(fit.band(at))
        axes.plot(position, np.exp(fit.predict(at)), color=color)
        axes.fill_between(position, low, high, color=color, alpha=_BAND_ALPHA, linewidth=0)


def _none_at(x: Array) -> float:
    """The position of 0 on a logarithmic axis, at least half a decade below the other values."""
    above = np.unique(x[x > 0])
    if not len(above):
        return 1.0
    return float(above[0] / max(3.0, above[1] / above[0] if len(above) > 1 else 3.0))


def _mark_none(axes: Axes, x: Array, none_at: float) -> None:
    """Sets a tick `none`, and ticks at the powers of ten in the range of the values above 0.

    Where that range has no power of ten, the values themselves are ticks.
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
    """A value and a mask of rows for each line: every value, or the medians of five quantiles."""
    if values is None:
        return [(0.0, np.ones(rows, bool))]
    different = np.unique(values)
    if len(different) <= _MAX_GROUPS:
        return [(float(value), values == value) for value in different]
    part = np.searchsorted(np.quantile(values, np.arange(1, _MAX_GROUPS) / _MAX_GROUPS), values)
    return [
        (float(np.median(values[part == i])), part == i)
        for i in range(_MAX_GROUPS)
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


def _law_at_budget(fit: Fit, k: float, flops: float, size: Array) -> Array:
    """The loss of the law at sizes N [n] that spend the budget."""
    return np.exp(fit.predict({"N": size, "D": flops / k / size}))


def _isoflop(axes: Axes, fit: Fit, table: Table, view: compute_optimal.IsoFlop) -> None:
    """Loss against N at each budget: runs, law with its minimum, parabola through the runs."""
    for i, line in enumerate(view.lines):
        color, rows = figures.COLORS[i], list(line.rows)
        size, loss = table.variables["N"][rows], table.loss[rows]
        axes.plot(size, loss, figures.MARKERS[i], color=color, markersize=2.2, markeredgewidth=0)
        x = np.geomspace(size.min(), size.max(), _LINE_POINTS)
        law = _law_at_budget(fit, view.k, line.flops, x)
        axes.plot(x, law, color=color, linewidth=0.9)
        axes.plot(
            x,
            np.polyval(compute_optimal.parabola(size, loss)[1], np.log(x)),
            "--",
            color=color,
            linewidth=0.7,
        )
        lowest = _law_at_budget(fit, view.k, line.flops, np.array([line.law]))
        axes.plot(line.law, lowest, "*", color=figures.BLACK, markersize=5, zorder=3)
        axes.annotate(
            f"{line.flops:.1e}",
            (x[-1], law[-1]),
            (4, -2),
            textcoords="offset points",
            color=color,
            fontsize=6,
        )
    _logarithmic(axes, "parameters, N", "loss")
    low, high = axes.get_ylim()
    # Room for the labels.
    axes.set(xlim=(None, axes.get_xlim()[1] * 3), ylim=(low * (low / high) ** 0.3, None))
    note = "dashed: parabolas through the runs"
    if biases := [100 * (line.bias - 1) for line in view.lines if line.bias is not None]:
        note += f"\nthrough the law they miss its N\nby {min(biases):+.2f} to {max(biases):+.2f}%"
    axes.text(0.03, 0.03, note, transform=axes.transAxes, fontsize=6, color=figures.GRAY)
    axes.set_title("IsoFLOP view; star: the law's best N")


def _logarithmic(axes: Axes, x: str, y: str, loss: str = "y") -> None:
    """Sets logarithmic axes; that of the loss, often within a decade, has plain numbers."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, NullLocator, ScalarFormatter

    axes.set(xlabel=x, ylabel=y, **{f"{name}scale": "log" for name in {"x", loss}})
    axis = axes.yaxis if loss == "y" else axes.xaxis
    axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
