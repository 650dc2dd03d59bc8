"""Figure files: reproducible bytes, searchable text, independent of user settings."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.viz import figures
from tests import runs


def example_figure(columns: int = 1):
    with figures.style():
        figure = figures.new_figure(columns, height=1.5)
        axes = figure.subplots()
        axes.plot([0, 1, 2], [1, 3, 2], marker="o", label="a line")
        axes.fill_between([0, 2], [0, 1], alpha=0.2)
        axes.set_xlabel("depth first ← log₂ α → image first")
        axes.legend()
    return figure


def test_equal_figures_give_equal_files(tmp_path):
    first = figures.save(example_figure(), tmp_path / "a")
    second = figures.save(example_figure(), tmp_path / "b" / "c.d")
    assert [path.name for path in first + second] == ["a.png", "a.svg", "c.d.png", "c.d.svg"]
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("columns", [1, 2])
def test_figure_width_is_the_column_width(tmp_path, columns):
    png, svg = figures.save(example_figure(columns), tmp_path / "a")
    with Image.open(png) as opened:
        assert opened.size == (round(300 * figures.WIDTH[columns]), 450)
        assert np.allclose(opened.info["dpi"], 300, atol=0.1)
    width = ElementTree.parse(svg).getroot().get("width")
    assert width is not None and float(width.removesuffix("pt")) == pytest.approx(
        72 * figures.WIDTH[columns]
    )


def test_svg_has_searchable_text(tmp_path):
    _, svg = figures.save(example_figure(), tmp_path / "a")
    texts = [node.text for node in ElementTree.parse(svg).iter() if node.tag.endswith("}text")]
    assert "depth first ← log₂ α → image first" in texts and "a line" in texts
    assert "<dc:date>" not in svg.read_text()


def test_style_is_independent_of_rcparams(tmp_path):
    import matplotlib

    plain = [path.read_bytes() for path in figures.save(example_figure(), tmp_path / "a")]
    with matplotlib.rc_context(
        {"axes.facecolor": "black", "font.size": 20, "savefig.bbox": "tight", "svg.hashsalt": None}
    ):
        before = dict(matplotlib.rcParams)
        assert [
            path.read_bytes() for path in figures.save(example_figure(), tmp_path / "b")
        ] == plain
        assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_lazily_and_pyplot_never(tmp_path):
    code = (
        "import sys; from modality_forcing.viz import figures\n"
        "assert 'matplotlib' not in sys.modules\n"
        "with figures.style(): figure = figures.new_figure(); figure.subplots()\n"
        f"figures.save(figure, {str(tmp_path / 'a')!r})\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=runs.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_unwritable_file_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        figures.save(example_figure(), tmp_path / "file" / "a")


@pytest.mark.parametrize(
    "n, expected",
    [
        (0, "0"),
        (950, "950"),
        (8000, "8 k"),
        (1_920_000_000, "1.92 B"),
        (128e6, "128 M"),
        (1.1e13, "11 T"),
        (5e22, "5e+22"),
    ],
)
def test_format_count(n, expected):
    assert figures.format_count(n) == expected
