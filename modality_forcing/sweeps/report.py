"""The report of a sweep: one HTML file with the curves, the law that its rows allow, and every row."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.atomic_io import write_file
from modality_forcing.errors import UserError
from modality_forcing.laws import forms
from modality_forcing.laws.figures import plot as plot_fit
from modality_forcing.laws.fit import Fit, compare, fit, largest_cells
from modality_forcing.laws.table import MUST_MATCH, Table
from modality_forcing.sweeps import figures as sweep_figures
from modality_forcing.sweeps.figures import Row
from modality_forcing.viz import figures
from modality_forcing.viz.html_report import page, section

_COLUMNS = (
    "width",
    "params",
    "images",
    "frames",
    "seed",
    "flops",
    "i2d_absrel",
    "i2d_delta1",
    "absrel",
    "delta1",
    "loss",
)
_SHARED = (*MUST_MATCH, "device", "devices")
_RESAMPLES = 400


def write(folder: Path, name: str, rows: Sequence[Row]) -> Path:
    """Writes figure4.{png,svg}, law.{png,svg} where the rows allow one, and report.html into the
    folder; returns the last.

    Raises UserError where no row has a score of depth.
    """
    curves = sweep_figures.write(rows, folder / "figure4")[1]
    told = _law(folder, rows)
    body = [
        f"<header><h1>Sweep {escape(name)}</h1><p class=lead>{_lead(rows)}</p></header>",
        section("Size and pretraining", _svg(curves)),
        section("The law", told),
        section("Every cell", _table(rows)),
        section("What all cells share", _shared(rows)),
    ]
    write_file(folder / "report.html", page(f"Sweep {name}", "\n".join(body)).encode())
    return folder / "report.html"


def table_of(rows: Sequence[Row], column: str) -> tuple[Table, str]:
    """Returns a score as a table, every cell a run of its own, and the name of the law to fit to
    it.

    Its variables are weights N, pretraining images n and, where they differ, post-training frames
    s.
    """
    scored = [row for row in rows if row.get(column) is not None]
    variables = {"N": [row["params"] for row in scored], "n": [row["images"] for row in scored]}
    if several := len({row["frames"] for row in scored}) > 1:
        variables["s"] = [row["frames"] for row in scored]
    return Table.of(
        variables, [row[column] for row in scored]
    ), "transfer" if several else "transfer-s"


def _law(folder: Path, rows: Sequence[Row]) -> str:
    column = "i2d_absrel" if any("i2d_absrel" in row for row in rows) else "absrel"
    if len({str([row.get(key) for key in MUST_MATCH]) for row in rows}) > 1:
        return "<p>Rows are of more than one code version, protocol or seed set: choose some with mforce fit --where.</p>"
    try:
        table, name = table_of(rows, column)
        fitted = fit(table, forms.parse(name), _RESAMPLES)
        with figures.style():
            drawn = figures.save(plot_fit(fitted, table), folder / "law")[1]
        return _svg(drawn) + _parameters(fitted) + _nested(table, fitted, name)
    except UserError as error:
        return f"<p>These rows allow no law yet: {escape(str(error))}.</p>"


def _parameters(fitted: Fit) -> str:
    cells = [("", "value", "95% interval")]
    for name, p in fitted.parameters.items():
        span = "" if p.low is None or p.high is None else f"{p.low:.3g} to {p.high:.3g}"
        cells.append((name, f"{p.value:.4g}" if p.value is not None else "not identified", span))
    notes = "".join(f"<p>{escape(note)}</p>" for note in fitted.notes)
    objective = f"summed Huber loss of log residuals {fitted.optimum.objective:.4g}"
    return f"<p>{escape(fitted.form.equation)}; {objective}; intervals by bootstrap over cells.</p>{_html(cells)}{notes}"


def _nested(table: Table, fitted: Fit, name: str) -> str:
    """The forms compared by what they say of the largest cells, which none of them has seen."""
    try:
        heldout_mask = largest_cells(table, fitted.form)
        compared, best = compare(table, forms.parse(name), heldout_mask)
    except UserError:
        return ""
    cells = [
        ("form", "parameters", "on cells it saw", "on larger ones", "what the rows cannot log")
    ]
    for c in compared:
        seen, larger = (
            ("", "")
            if c.held_out is None
            else (f"{c.held_out.rms_fitted:.1%}", f"{c.held_out.rms:.1%}")
        )
        cells.append((c.form, str(c.parameters), seen, larger, c.why))
    told = (
        f"Least error on cells larger than any it saw, and fewest parameters: {escape(best)}."
        if best
        else ""
    )
    return f"<p>{told}</p>{_html(cells)}"


def _lead(rows: Sequence[Row]) -> str:
    sizes, images, frames = ({row[key] for row in rows} for key in ("params", "images", "frames"))
    seeds = len({row["seed"] for row in rows})
    spans = [
        f"{figures.format_count(min(span))} to {figures.format_count(max(span))}"
        for span in (sizes, images, frames)
    ]
    told = f"{len(sizes)} sizes ({spans[0]} weights), {len(images)} amounts of pretraining ({spans[1]} images)"
    told += f", {len(frames)} of post-training ({spans[2]} frames)" if len(frames) > 1 else ""
    return f"{len(rows)} cells: {told}, {seeds} seeds."


def _table(rows: Sequence[Row]) -> str:
    """A row for each cell: where it stands on the sweep's axes, then what the cells have in common."""
    axes = list(dict.fromkeys(name for row in rows for name in row["axes"]))
    names = [
        name
        for name in _COLUMNS
        if name not in axes and any(row.get(name) is not None for row in rows)
    ]
    cells = (
        [
            *(_cell(row["axes"].get(axis)) for axis in axes),
            *(_cell(row.get(name)) for name in names),
        ]
        for row in rows
    )
    return _html([[*axes, *names], *cells])


def _shared(rows: Sequence[Row]) -> str:
    values = {name: sorted({str(row.get(name)) for row in rows}) for name in _SHARED}
    return _html([("", "value"), *((name, "; ".join(found)) for name, found in values.items())])


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return (
        ""
        if value is None
        else figures.format_count(value)
        if isinstance(value, int) and value >= 10_000
        else str(value)
    )


def _html(cells: Sequence[Sequence[str]]) -> str:
    head, *rest = (
        "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in _tagged(cells)
    )
    return f"<div class=wide><table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in rest)}</table></div>"


def _tagged(cells: Sequence[Sequence[str]]) -> list[tuple[str, Sequence[str]]]:
    return [("td" if i else "th", row) for i, row in enumerate(cells)]


def _svg(path: Path) -> str:
    """A drawing in the page itself, without the head of a file."""
    text = path.read_text(encoding="utf-8")
    return f"<figure class=drawing>{text[text.index('<svg') :]}</figure>"
