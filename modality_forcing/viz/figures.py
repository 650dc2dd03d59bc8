"""The style of all figures: paper column widths, color-blind safe colors, reproducible files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modality_forcing.paths import as_path, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib is imported in the functions, so that other commands need not wait for it. pyplot is
# never used: its state is global.

WIDTH = {1: 3.3, 2: 6.9}  # inches, by number of page columns
BLACK, GRAY, LIGHT_GRAY = "#1c1c1f", "#66666e", "#dcdce0"
# Okabe & Ito (2008), darkest first, without yellow, which is too pale for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")  # used with the colors, for gray prints

_STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: equal files on every machine
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.2,
    "legend.borderpad": 0.2,
    "legend.columnspacing": 1.4,
    "text.color": BLACK,
    "axes.labelcolor": BLACK,
    "axes.edgecolor": GRAY,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT_GRAY,
    "grid.linewidth": 0.5,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": BLACK,
    "ytick.labelcolor": BLACK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "svg.fonttype": "none",  # text stays searchable text
    "svg.hashsalt": "modality_forcing",  # ids in the file are random without it
}


@contextmanager
def style() -> Iterator[None]:
    """Applies the style within the context, independent of the user's matplotlibrc."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


def new_figure(columns: int = 1, height: float = 2.2) -> Figure:
    """Returns an empty figure of one or two page columns, `height` in inches; use in `style()`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH[columns], height), layout="constrained")


def render(figure: Figure, kind: str) -> bytes:
    """Returns the figure as "png" (300 dpi) or "svg": equal bytes for equal figures."""
    metadata = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[kind]
    content = io.BytesIO()
    with style():
        figure.savefig(content, format=kind, metadata=metadata)
    return content.getvalue()


def save(figure: Figure, stem: str | Path) -> list[Path]:
    """Writes <stem>.png and <stem>.svg (`render`) and returns the two paths.

    Raises UserError if a file cannot be written; files are written atomically.
    """
    paths = [as_path(f"{stem}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        write_file(path, render(figure, path.suffix[1:]))
    return paths


def format_count(n: float) -> str:
    """Returns a count with a unit: 1.92 B, 128 M, 8 k; from 1000 T on as 5e+22."""
    if n >= 1e15:
        return f"{n:.3g}"
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if n >= 10**power:
            return f"{n / 10**power:.4g} {letter}"
    return f"{n:g}"
