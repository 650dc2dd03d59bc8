"""The report of a sweep: one HTML file with the curves, the fitted law and every row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.laws import forms
from modality_forcing.laws.compare import compare, largest_cells
from modality_forcing.laws.figures import plot as plot_fit
from modality_forcing.laws.fit import Fit, fit
from modality_forcing.laws.table import MUST_MATCH, Table
from modality_forcing.paths import read_bytes, write_file
from modality_forcing.sweeps import figures as sweep_figures
from modality_forcing.sweeps.curves import Curve
from modality_forcing.sweeps.curves import write as write_curves
from modality_forcing.sweeps.figures import Row
from modality_forcing.viz import figures
from modality_forcing.viz.figures import format_count
from modality_forcing.viz.page import chart, page, section, table

_COLUMNS = (
    *("width", "params", "images", "frames", "seed", "flops"),
    *("i2d_absrel", "i2d_delta1", "absrel", "delta1", "loss"),
)
_SHARED = (*MUST_MATCH, "device", "devices")
_RESAMPLES = 400


def write(folder: Path, name: str, rows: Sequence[Row], curves: Sequence[Curve] = ()) -> Path:
    """Writes report.html and its figures into the folder and returns the report's path.

    figure4.{png,svg} is always there, curves.{png,svg} if there are curves, and law.{png,svg} if
    the rows allow a fit. Raises UserError if no row has a score of depth.
    """
    drawing = sweep_figures.write(rows, folder / "figure4")[1]
    title, caption = "Size and pretraining", "Error by size"
    if sweep_figures.splits_budgets(rows):
        title, caption = "Split of the budget", "Error and loss of images by share of pretraining"
    body = [
        f"<header><h1>Sweep {escape(name)}</h1><p class=lead>{_lead(rows)}</p></header>",
        section(title, chart(read_bytes(drawing), caption)),
        *([section("While training", _while_training(folder, curves))] if curves else []),
        section("Scaling law", _law(folder, rows)),
        section("Every cell", _cells(rows)),
        section("What all cells share", _shared(rows)),
    ]
    write_file(folder / "report.html", page(f"Sweep {name}", "\n".join(body)).encode())
    return folder / "report.html"


def _while_training(folder: Path, curves: Sequence[Curve]) -> str:
    svg = write_curves(curves, folder / "curves")[1]
    caption = "Loss of held-out records at fixed noise levels, mean over the levels"
    return chart(read_bytes(svg), caption)


def table_of(rows: Sequence[Row], column: str) -> tuple[Table, str]:
    """Returns a score as a table with one run per cell, and the name of the law to fit to it.

    Variables: parameters N, pretraining images n and, if they differ, post-training frames s.
    """
    scored = [row for row in rows if row.get(column) is not None]
    variables = {"N": [row["params"] for row in scored], "n": [row["images"] for row in scored]}
    several = len({row["frames"] for row in scored}) > 1
    if several:
        variables["s"] = [row["frames"] for row in scored]
    losses = [row[column] for row in scored]
    return Table.of(variables, losses), "transfer" if several else "transfer-s"


def _law(folder: Path, rows: Sequence[Row]) -> str:
    if len({str([row.get(key) for key in MUST_MATCH]) for row in rows}) > 1:
        return (
            "<p>The rows have more than one code version, protocol or seed set: "
            "select rows with mforce fit --where.</p>"
        )
    column = "i2d_absrel" if any("i2d_absrel" in row for row in rows) else "absrel"
    try:
        points, name = table_of(rows, column)
        fitted = fit(points, forms.parse(name), _RESAMPLES)
        with figures.style():
            svg = figures.save(plot_fit(fitted, points), folder / "law")[1]
    except UserError as error:
        return f"<p>No law can be fitted to these rows yet: {escape(str(error))}.</p>"
    drawing = chart(read_bytes(svg), fitted.form.equation)
    return drawing + _parameters(fitted) + _nested_forms(points, name, fitted)


def _parameters(fitted: Fit) -> str:
    rows = []
    for name, p in fitted.parameters.items():
        interval = "" if p.low is None or p.high is None else f"{p.low:.3g} to {p.high:.3g}"
        rows.append((name, "not identified" if p.value is None else f"{p.value:.4g}", interval))
    objective = f"summed Huber loss of log residuals {fitted.optimum.objective:.4g}"
    return (
        f"<p>{escape(fitted.form.equation)}; {objective}; intervals by bootstrap over cells.</p>"
        + table(("", "value", "95% interval"), rows)
        + "".join(f"<p>{escape(note)}</p>" for note in fitted.notes)
    )


def _nested_forms(points: Table, name: str, fitted: Fit) -> str:
    """Compares nested forms by their error on the largest cells, which are held out."""
    try:
        held_out = largest_cells(points, fitted.form)
        compared, best = compare(points, forms.parse(name), held_out)
    except UserError:
        return ""
    header = ("form", "parameters", "error, fitted cells", "error, larger cells", "not identified")
    rows = []
    for c in compared:
        errors = ("", "")
        if c.held_out is not None:
            errors = (f"{c.held_out.rms_fitted:.1%}", f"{c.held_out.rms:.1%}")
        rows.append((c.form, str(c.parameters), *errors, c.reason))
    winner = "Least error on larger, held-out cells, then fewest parameters"
    sentence = f"<p>{winner}: {escape(best)}.</p>" if best else ""
    return sentence + table(header, rows)


def _lead(rows: Sequence[Row]) -> str:
    params, images, frames = ({row[key] for row in rows} for key in ("params", "images", "frames"))
    parts = [
        f"{len(params)} sizes ({_span(params)} parameters)",
        f"{len(images)} amounts of pretraining ({_span(images)} images)",
    ]
    if len(frames) > 1:
        parts.append(f"{len(frames)} of post-training ({_span(frames)} frames)")
    seeds = len({row["seed"] for row in rows})
    return f"{len(rows)} cells: {', '.join(parts)}, {seeds} seeds."


def _span(values: set[int]) -> str:
    return f"{format_count(min(values))} to {format_count(max(values))}"


def _cells(rows: Sequence[Row]) -> str:
    """A table of the cells: their values on the sweep's axes, then the columns they have."""
    axes = list(dict.fromkeys(name for row in rows for name in row["axes"]))
    known = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
    names = [name for name in known if name not in axes]
    cells = []
    for row in rows:
        values = [row["axes"].get(axis) for axis in axes] + [row.get(name) for name in names]
        cells.append([_format(value) for value in values])
    return table([*axes, *names], cells)


def _shared(rows: Sequence[Row]) -> str:
    values = {name: sorted({str(row.get(name)) for row in rows}) for name in _SHARED}
    return table(("", "value"), [(name, "; ".join(found)) for name, found in values.items()])


def _format(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return format_count(value) if isinstance(value, int) and value >= 10_000 else str(value)
