"""The early figure of a sweep: held-out losses of its runs over FLOPs, while they train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from modality_forcing.errors import UserError
from modality_forcing.sweeps.price import parameters, run_flops
from modality_forcing.sweeps.spec import Run
from modality_forcing.sweeps.workdir import SweepDir
from modality_forcing.train.metric_rows import read_metrics
from modality_forcing.train.throughput import step_flops
from modality_forcing.viz import figures
from modality_forcing.viz.figures import COLORS, format_count

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = 3  # of a figure, two page columns wide


class Curve(NamedTuple):
    """One score of one run."""

    run: str  # its folder
    column: str  # as "loss_image"
    params: int  # of the trunk, N
    flops: tuple[float, ...]  # those of the runs that it starts from included
    values: tuple[float, ...]


def read_curves(folder: SweepDir) -> list[Curve]:
    """Returns the losses at fixed noise levels (`eval.every`) that the runs have written so far.

    Raises UserError if rows are damaged.
    """
    return [curve for run in folder.sweep.runs() for curve in _read(folder, run)]


def _read(folder: SweepDir, run: Run) -> list[Curve]:
    rows = read_metrics(folder.run_dir(run))
    each = step_flops(run.config)
    before = sum(run_flops(earlier) for earlier in run.lineage()[:-1])
    names = {name: None for row in rows for name in row if name.startswith("eval/loss_")}
    curves = []
    for name in names:
        points = [(before + row["step"] * each, row[name]) for row in rows if name in row]
        points = [(spent, value) for spent, value in points if spent > 0]  # the axis is logarithmic
        column = name.removeprefix("eval/")
        if points and "/" not in column:  # means over the levels
            spent, values = zip(*points, strict=True)
            size = parameters(run.config).trunk
            curves.append(Curve(run.folder, column, size, spent, values))
    return curves


def plot(curves: Sequence[Curve]) -> Figure:
    """Returns the figure: a panel for each loss, a line for each run, a color for each size.

    Create and save it inside `figures.style()`. Raises UserError without curves.
    """
    columns = list(dict.fromkeys(curve.column for curve in curves))
    if not columns:
        hint = "set eval.every in the sweep's configs"
        raise UserError("no run has evaluated anything while training", hint=hint)
    # Conditional losses are the most informative, so they come first.
    columns = sorted(columns, key=lambda name: "_given_" not in name)[:_PANELS]
    sizes = sorted({curve.params for curve in curves})
    figure = figures.new_figure(2, height=2.4)
    panels = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, column in zip(panels, columns, strict=True):
        for curve in curves:
            if curve.column == column:
                color = COLORS[sizes.index(curve.params) % len(COLORS)]
                label = format_count(curve.params)
                axes.plot(curve.flops, curve.values, ".-", color=color, label=label)
        label = column.removeprefix("loss_").replace("_", " ")
        axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=f"loss, {label}")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(lambda value, _: f"{value:.3g}")  # 0.48, not 4.8 x 10^-1
    named = {
        str(label): handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    ordered = [format_count(size) for size in sizes]
    title = {"title": "parameters of the trunk, N", "title_fontsize": 6.5}
    handles = [named[label] for label in ordered if label in named]
    figure.legend(handles, ordered, loc="outside upper left", ncols=len(ordered), **title)
    return figure


def write(curves: Sequence[Curve], stem: Path) -> list[Path]:
    """Writes <stem>.png and <stem>.svg; returns both paths."""
    with figures.style():
        return figures.save(plot(curves), stem)
