"""The figure of a sweep: the paper's figure 4, or error by the split of a budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.tree import JsonObject
from modality_forcing.viz import figures
from modality_forcing.viz.figures import COLORS, MARKERS, format_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = JsonObject  # of a cell
# Columns of rows with their labels; the error comes first. Benchmarks: the mean over the sets.
_LABELS = ("AbsRel, lower is better", "δ1, higher is better")
RECORD_COLUMNS = ("i2d_absrel", "i2d_delta1")
BENCHMARK_COLUMNS = ("absrel", "delta1")
_BASELINES = (("row_mean", "mean of each row"), ("constant", "best constant"))


# What a line of a plot is of, with the title of its legend.
_LINES = {"images": "pretraining images", "budget": "budget, in steps of post-training"}


class Axis(NamedTuple):
    """The horizontal axis of a plot: a column of counts, on a logarithmic scale, or of shares."""

    column: str
    label: str
    is_share: bool = False


class Panel(NamedTuple):
    """One plot: `column` over `x`, a line for each value of `line`."""

    column: str
    label: str
    rows: Sequence[Row]
    x: Axis
    line: str = "images"


def plot(rows: Sequence[Row]) -> Figure:
    """Returns the figure, two page columns wide. Create and save it inside `figures.style()`.

    A point is a seed; lines connect the means over seeds.
    A sweep with the axes `budget` and `share` (configs/sweep_split.py) has the error, and the loss
    of images, over the share of the FLOPs that went to pretraining.
    Any other has the error over size. If post-training has several lengths, the first two panels
    show the longest, and a third one shows the error of the largest model over length.
    Raises UserError if no row has a score of depth.
    """
    panels = _split_panels(rows) if splits_budgets(rows) else _panels(rows)
    figure = figures.new_figure(2, height=2.4)
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(row, panels, strict=True):
        _plot_curves(axes, panel)
        _plot_baselines(axes, panel)
        _set_axes(axes, panel)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    title = {"title": _LINES[panels[0].line], "title_fontsize": 6.5}
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), **title)
    return figure


def splits_budgets(rows: Sequence[Row]) -> bool:
    """Returns whether the cells split budgets between pretraining and post-training."""
    return all({"budget", "share"} <= set(row["axes"]) for row in rows)


def write(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Writes <stem>.png and <stem>.svg; returns both paths."""
    with figures.style():
        return figures.save(plot(rows), stem)


def _panels(rows: Sequence[Row]) -> list[Panel]:
    error, delta1 = _score_columns(rows)
    scored = _scored(rows, error)
    longest, largest = (max(row[key] for row in scored) for key in ("frames", "params"))
    last = [row for row in scored if row["frames"] == longest]
    labels = dict(zip((error, delta1), _LABELS, strict=True))
    size = Axis("params", "parameters of the trunk, N")
    panels = [Panel(column, label, last, size) for column, label in labels.items()]
    if len({row["frames"] for row in scored}) > 1:
        wide = [row for row in scored if row["params"] == largest]
        length = Axis("frames", f"post-training frames, N = {format_count(largest)}")
        panels.append(Panel(error, labels[error], wide, length))
    return panels


def _split_panels(rows: Sequence[Row]) -> list[Panel]:
    error = _score_columns(rows)[0]
    scored = [{**row, **row["axes"]} for row in _scored(rows, error)]
    labels = {error: _LABELS[0]}
    if any(row.get("loss_image") is not None for row in scored):  # benchmarks have none
        labels["loss_image"] = "loss of images after post-training"
    share = Axis("share", "share of the FLOPs in pretraining", is_share=True)
    return [Panel(name, label, scored, share, line="budget") for name, label in labels.items()]


def _score_columns(rows: Sequence[Row]) -> tuple[str, str]:
    held_out = any(name in row for row in rows for name in RECORD_COLUMNS)
    return RECORD_COLUMNS if held_out else BENCHMARK_COLUMNS


def _scored(rows: Sequence[Row], column: str) -> list[Row]:
    scored = [row for row in rows if row.get(column) is not None]
    if not scored:
        hint = "finish a cell of the sweep first"
        raise UserError("no row has a score of image to depth", hint=hint)
    return scored


def _plot_curves(axes: Axes, panel: Panel) -> None:
    for i, line in enumerate(sorted({row[panel.line] for row in panel.rows})):
        color, marker = COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)]
        values: dict[float, list[float]] = {}
        for row in panel.rows:
            if row[panel.line] == line and row.get(panel.column) is not None:
                values.setdefault(row[panel.x.column], []).append(row[panel.column])
        points = [(x, y) for x, ys in values.items() for y in ys]
        xs, ys = np.array(points).reshape(-1, 2).T
        axes.plot(xs, ys, marker, color=color, alpha=0.4, markeredgewidth=0)
        sizes = sorted(values)
        means = [np.mean(values[x]) for x in sizes]
        label = format_count(line) if line else "none"
        axes.plot(sizes, means, f"{marker}-", color=color, label=label)


def _set_axes(axes: Axes, panel: Panel) -> None:
    axes.set(xlabel=panel.x.label, ylabel=panel.label)
    ticks = sorted({row[panel.x.column] for row in panel.rows})
    if panel.x.is_share:
        axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
        return
    axes.set_xscale("log")
    axes.set_xticks(ticks, [format_count(tick) for tick in ticks])
    axes.set_xticks([], minor=True)


def _plot_baselines(axes: Axes, panel: Panel) -> None:
    """Draws a dotted line at the score of predictors that ignore the image, if it is close."""
    values = [row[panel.column] for row in panel.rows if row.get(panel.column) is not None]
    if not values:
        return
    margin = 0.5 * np.ptp(values)
    for name, label in _BASELINES:
        column = panel.column.replace("i2d", name)
        known = [row[column] for row in panel.rows if row.get(column) is not None]
        if column == panel.column or not known:
            continue  # benchmarks have no baselines
        level = float(np.mean(known))
        if min(values) - margin <= level <= max(values) + margin:
            axes.axhline(level, color=figures.GRAY, linewidth=0.8, linestyle=":")
            at_right = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
            axes.annotate(label, (1, level), fontsize=6, **at_right)
