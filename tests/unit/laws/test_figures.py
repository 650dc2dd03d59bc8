"""The figure of a fit: its panels, text inside its edges, bytes that repeat."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from modality_forcing.laws import compute_optimal
from modality_forcing.laws import figures as fit_figures
from modality_forcing.laws.fit import fit
from modality_forcing.laws.forms import FORMS, parse
from modality_forcing.laws.table import Table
from modality_forcing.viz import figures

GRIDS = {
    "chinchilla": {"N": np.geomspace(1e7, 1e10, 8), "D": np.geomspace(1e8, 1e11, 8)},
    "chinchilla-D": {"N": np.geomspace(1e7, 1e10, 8)},
    "power": {"x": np.geomspace(1e6, 1e9, 12)},
    "transfer-G": {
        "N": np.geomspace(1e6, 1e8, 4),
        "n": np.r_[0, 1e4, 1e5, 1e6],
        "s": np.geomspace(1e4, 1e6, 3),
    },
    "transfer-s": {"N": np.geomspace(1e6, 1e9, 9), "n": np.r_[0, 1e4, 1e5, 1e6]},
}
TRUE = {"E": 0.05, "A": 20.0, "alpha": 0.3, "B": 30.0, "beta": 0.32, "gamma": 0.2, "none": 2.0}


@pytest.fixture(scope="module", params=GRIDS)
def drawn(request):
    form, grid = parse(request.param), GRIDS[request.param]
    variables = dict(zip(grid, (x.ravel() for x in np.meshgrid(*grid.values())), strict=True))
    law = form.predict([TRUE[name] for name in form.parameters], variables)
    table = Table.of(variables, np.exp(law + np.random.default_rng(0).normal(0, 0.01, law.size)))
    found = fit(table, form, resamples=100)
    view = compute_optimal.isoflop(table, found, 6.0) if form == FORMS["chinchilla"] else None
    with figures.style():
        return (
            form,
            fit_figures.plot(found, table, view),
            lambda: fit_figures.plot(found, table, view),
        )


def test_panels(drawn):
    form, figure, _ = drawn
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[1] == "Residuals" and len(titles) == (3 if form == FORMS["chinchilla"] else 2)
    labels = [axes.get_xlabel() for axes in figure.axes]
    if "n" in form.variables:
        assert labels[0] == "n, pretraining images"
        assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
            "none",
            "$10^{4}$",
            "$10^{5}$",
            "$10^{6}$",
        ]
    if form.variables == ("N", "D"):
        assert labels[0] == "training FLOPs, C" and titles[2].startswith("IsoFLOP")
        assert any("they miss its N" in text.get_text() for text in figure.axes[2].texts)


def test_values_without_a_power_of_ten_between_are_the_ticks():
    with figures.style():
        axes = figures.new_figure(1).subplots()
        fit_figures._mark_none(axes, np.array([0, 20_000, 80_000, 80_000.0]), 5000.0)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "20 k", "80 k"]


def test_text_stays_inside_the_figure(drawn):
    _, figure, _ = drawn
    with figures.style():
        FigureCanvasAgg(figure).draw()
        edge = figure.bbox.padded(1)
        for axes in figure.axes:
            legend = axes.get_legend()
            titles = [
                *(text for text in axes.get_children() if isinstance(text, Text)),
                axes.xaxis.label,
                axes.yaxis.label,
            ]
            for text in titles + ([] if legend is None else legend.get_texts()):
                box = text.get_window_extent()
                if text.get_text():
                    assert (
                        edge.x0 <= box.x0 < box.x1 <= edge.x1
                        and edge.y0 <= box.y0 < box.y1 <= edge.y1
                    ), text.get_text()


def test_laws_decrease_and_have_bands(drawn):
    _, figure, _ = drawn
    lines = [
        line
        for line in figure.axes[0].lines
        if len(line.get_xdata()) > 2 and line.get_linestyle() == "-"
    ]
    assert lines and figure.axes[0].collections
    assert all(np.all(np.diff(np.asarray(line.get_ydata())) <= 0) for line in lines)  # laws fall


@pytest.mark.parametrize("drawn", ["chinchilla"], indirect=True)
def test_equal_fits_give_equal_files(drawn, tmp_path):
    plot = drawn[2]
    with figures.style():
        first, second = figures.save(plot(), tmp_path / "a"), figures.save(plot(), tmp_path / "b")
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()
