"""The report of a sweep: a self-contained file, with a law or the reason why there is none."""

from __future__ import annotations

import re

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.sweeps import report
from tests.unit.sweeps.test_figures import rows

CHART = "src='data:image/svg+xml;base64,"


def many() -> list[dict]:
    """Enough cells to fit a law, with scores that follow one."""
    rng, cells = np.random.default_rng(0), []
    for params in (1e4, 4e4, 1.6e5, 6.4e5):
        for images in (0, 8000, 32_000, 128_000):
            error = 0.1 + 3 * params**-0.3 + (0.08 if not images else 0.9 * images**-0.35)
            error *= np.exp(0.01 * rng.standard_normal())
            columns = {"i2d_absrel": error, "params": int(params), "images": images}
            axes = {"size": f"{params:g}-{images}", "seed": 0}
            cells.append({**rows()[0], **columns, "axes": axes})
    return cells


def test_report_is_one_file_with_curves_law_and_every_row(tmp_path):
    path = report.write(tmp_path, "scenes <1>", many())
    text = path.read_text()
    assert path.name == "report.html" and "Sweep scenes &lt;1&gt;" in text
    assert text.count(CHART) == 2
    assert not re.search(r"(src|href)=['\"](?!data:|#)", text)
    assert "<script" not in text and "http-equiv=Content-Security" in text
    assert "<tr><th>size</th><th>seed</th><th>width</th><th>params</th>" in text
    assert text.count("<th>seed</th>") == 1
    assert all(f"<tr><td>{row['axes']['size']}</td><td>0</td><td>8</td>" in text for row in many())
    winner = r"Least error on larger, held-out cells, then fewest parameters: transfer-s[-\w]*\."
    assert "alpha" in text and re.search(winner, text)
    names = {found.name for found in tmp_path.iterdir()}
    assert {"figure4.png", "figure4.svg", "law.png", "law.svg"} <= names


def test_several_lengths_of_post_training_make_a_law_of_three_variables(tmp_path):
    cells = []
    for row in many():
        for frames in (1000, 4000, 16_000):
            score = 0.05 + (row["i2d_absrel"] - 0.05) * (frames / 1000) ** -0.3
            cells.append({**row, "frames": frames, "i2d_absrel": score})
    text = report.write(tmp_path, "frames", cells).read_text()
    assert "3 of post-training (1 k to 16 k frames)" in text
    gamma = re.search(r"<td>gamma</td><td>([^<]*)</td>", text)
    assert gamma and abs(float(gamma[1]) - 0.3) < 0.05


def test_too_few_rows_give_the_reason_instead_of_a_law(tmp_path):
    text = report.write(tmp_path, "few", rows()[:4]).read_text()
    assert "No law can be fitted to these rows yet: " in text and text.count(CHART) == 1


def test_rows_of_two_versions_are_not_pooled(tmp_path):
    mixed = [{**row, "version": str(i % 2)} for i, row in enumerate(many())]
    text = report.write(tmp_path, "mixed", mixed).read_text()
    assert "more than one code version" in text and "alpha" not in text


def test_rows_without_a_score_are_refused(tmp_path):
    with pytest.raises(UserError, match="no row has a score"):
        report.write(tmp_path, "none", [{**rows()[0], "i2d_absrel": None}])
    assert not list(tmp_path.iterdir())
