"""The paper's figure 4 of a sweep: what image to depth makes of a model's size, a line for each
number of pretraining images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.viz import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
# A column of the rows, and what it is called; lower is better of the first kind.
PANELS = (("i2d_absrel", "AbsRel, lower is better"), ("i2d_delta1", "δ1, higher is better"))
PAPER_PANELS = (
    ("absrel", PANELS[0][1]),
    ("delta1", PANELS[1][1]),
)  # of benchmarks: the mean over the sets
_BASELINES = (("row_mean", "mean of each row"), ("constant", "best constant"))


def plot(rows: Sequence[Row]) -> Figure:
    """Returns the figure, over two columns of a page; draw it, and save it, inside
    `figures.style()`.

    A point is a seed, a line goes through the means over seeds. Where post-training has several
    lengths, both panels show the longest, and a third one the error of the largest model against
    them. Raises UserError where no row has a score of depth.
    """
    panels = PANELS if any(name in row for row in rows for name, _ in PANELS) else PAPER_PANELS
    scored = [row for row in rows if row.get(panels[0][0]) is not None]
    if not scored:
        raise UserError(
            "no row has a score of image to depth", hint="finish a cell of the sweep first"
        )
    longest, largest = (max(row[key] for row in scored) for key in ("frames", "params"))
    last, wide = (
        [row for row in scored if row[key] == most]
        for key, most in (("frames", longest), ("params", largest))
    )
    drawn = [(name, told, last, "params", "weights in the trunk, N") for name, told in panels]
    if len({row["frames"] for row in scored}) > 1:
        drawn.append(
            (
                *panels[0],
                wide,
                "frames",
                f"post-training frames, N = {figures.format_count(largest)}",
            )
        )
    figure = figures.new_figure(2, height=2.4)
    for axes, (name, told, shown, along, label) in zip(
        figure.subplots(1, len(drawn)), drawn, strict=True
    ):
        _plot_curves(axes, shown, name, along)
        _plot_baselines(axes, shown, name)
        axes.set(xscale="log", xlabel=label, ylabel=told)
        ticks = sorted({row[along] for row in shown})
        axes.set_xticks(ticks, [figures.format_count(tick) for tick in ticks])
        axes.set_xticks([], minor=True)
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        lines,
        labels,
        loc="outside upper left",
        ncols=len(labels),
        title="pretraining images",
        title_fontsize=6.5,
    )
    return figure


def write(rows: Sequence[Row], stem: Path) -> list[Path]:
    """Writes <stem>.png and <stem>.svg; returns both paths."""
    with figures.style():
        return figures.save(plot(rows), stem)


def _plot_curves(axes: Axes, rows: Sequence[Row], name: str, along: str) -> None:
    for i, images in enumerate(sorted({row["images"] for row in rows})):
        color, marker = (
            figures.COLORS[i % len(figures.COLORS)],
            figures.MARKERS[i % len(figures.MARKERS)],
        )
        mine = [row for row in rows if row["images"] == images and row.get(name) is not None]
        places = sorted({row[along] for row in mine})
        means = [np.mean([row[name] for row in mine if row[along] == place]) for place in places]
        axes.plot(
            [row[along] for row in mine],
            [row[name] for row in mine],
            marker,
            color=color,
            alpha=0.4,
            markeredgewidth=0,
        )
        axes.plot(
            places,
            means,
            f"{marker}-",
            color=color,
            label=figures.format_count(images) if images else "none",
        )


def _plot_baselines(axes: Axes, rows: Sequence[Row], name: str) -> None:
    """A dotted line at the score of a predictor that sees nothing of the picture, where the curves
    come near it.
    """
    values = [row[name] for row in rows if row.get(name) is not None]
    for column, told in _BASELINES:
        known = [
            value for row in rows if (value := row.get(name.replace("i2d", column))) is not None
        ]
        if column in name or not known:
            continue
        level = float(np.mean(known))
        if min(values) - 0.5 * np.ptp(values) <= level <= max(values) + 0.5 * np.ptp(values):
            axes.axhline(level, color=figures.GRAY, linewidth=0.8, linestyle=":")
            axes.annotate(
                told,
                (1, level),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=6,
            )
