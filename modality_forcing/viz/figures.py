"""The style of every figure: sizes of a paper's columns, colours that the colour-blind tell apart, files equal to the byte."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modality_forcing.atomic_io import write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# matplotlib is imported in the functions: whoever draws nothing need not wait for it. Never pyplot, whose state is global.

WIDTH = {1: 3.3, 2: 6.9}  # inches, of a figure over so many columns of a page
INK, SOFT, LINE = "#1c1c1f", "#66666e", "#dcdce0"
# Okabe & Ito (2008), darkest first and without its yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")  # beside the colours, so that a gray print can be read

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
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "svg.fonttype": "none",  # text stays text: searched, and set in the page's size
    "svg.hashsalt": "modality_forcing",  # ids of the file are drawn from it, or at random
}


@contextmanager
def style() -> Iterator[None]:
    """What is drawn inside is drawn in the one style, whatever the reader's own matplotlibrc says."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


def figure(columns: int = 1, height: float = 2.2) -> Figure:
    """Returns an empty figure over one or two columns of a page, `height` in inches; draw on it inside `style()`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH[columns], height), layout="constrained")


def save(drawn: Figure, stem: str | Path) -> list[Path]:
    """Writes <stem>.png (300 dpi) and <stem>.svg, equal to the byte for equal figures and matplotlib; returns the two paths.

    Raises UserError if a file cannot be written; each is whole or not there.
    """
    stem, paths = Path(stem), []
    undated = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    for kind, metadata in undated.items():
        content = io.BytesIO()
        with style():
            drawn.savefig(content, format=kind, metadata=metadata)
        paths.append(stem.with_name(f"{stem.name}.{kind}"))
        write_file(paths[-1], content.getvalue())
    return paths


def short(n: float) -> str:
    """Returns a count in a few letters: 1.92 B, 128 M, 8 k; past thousands of T, as 5e+22."""
    if n >= 1e15:
        return f"{n:.3g}"
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "k")):
        if n >= 10**power:
            return f"{n / 10**power:.4g} {letter}"
    return f"{n:g}"
