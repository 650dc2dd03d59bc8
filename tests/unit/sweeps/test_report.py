"""The report of a sweep: whole by itself, with a law where rows allow one, and the reason where
they do not.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.sweeps import report
from tests.unit.sweeps.test_figures import rows


def many() -> list[dict]:
    """Enough cells for a law, by a law."""
    rng, found = np.random.default_rng(0), []
    for params in (1e4, 4e4, 1.6e5, 6.4e5):
        for images in (0, 8000, 32_000, 128_000):
            error = 0.1 + 3 * params**-0.3 + (0.08 if not images else 0.9 * images**-0.35)
            score = {
                "i2d_absrel": error * np.exp(0.01 * rng.standard_normal()),
                "params": int(params),
                "images": images,
            }
            found.append(
                {**rows()[0], **score, "axes": {"size": f"{params:g}-{images}", "seed": 0}}
            )
    return found


def test_it_is_one_file_with_curves_law_and_every_row(tmp_path):
    path = report.write(tmp_path, "scenes <1>", many())
    text = path.read_text()
    assert (
        path.name == "report.html" and text.count("<svg") == 2 and "Sweep scenes &lt;1&gt;" in text
    )
    assert (
        not re.search(r"(src|href)=['\"](?!data:|#)", text)
        and "<script" not in text
        and "http-equiv=Content-Security" in text
    )
    assert (
        "<tr><th>size</th><th>seed</th><th>width</th><th>params</th>" in text
        and text.count("<th>seed</th>") == 1
    )
    assert all(f"<tr><td>{row['axes']['size']}</td><td>0</td><td>8</td>" in text for row in many())
    assert "alpha" in text and re.search(
        r"Least error on cells larger than any it saw, and fewest parameters: transfer-s[-\w]*\.",
        text,
    )
    assert {"figure4.png", "figure4.svg", "law.png", "law.svg"} <= {
        found.name for found in tmp_path.iterdir()
    }


def test_several_lengths_of_post_training_make_a_law_of_three_variables(tmp_path):
    found = []
    for row in many():
        for frames in (1000, 4000, 16_000):
            score = 0.05 + (row["i2d_absrel"] - 0.05) * (frames / 1000) ** -0.3
            found.append({**row, "frames": frames, "i2d_absrel": score})
    text = report.write(tmp_path, "frames", found).read_text()
    assert "3 of post-training (1 k to 16 k frames)" in text
    gamma = re.search(r"<td>gamma</td><td>([^<]*)</td>", text)
    assert gamma and abs(float(gamma[1]) - 0.3) < 0.05


def test_too_few_rows_say_so(tmp_path):
    text = report.write(tmp_path, "few", rows()[:4]).read_text()
    assert "These rows allow no law yet: " in text and text.count("<svg") == 1


def test_rows_of_two_versions_are_not_pooled(tmp_path):
    mixed = [{**row, "version": str(i % 2)} for i, row in enumerate(many())]
    text = report.write(tmp_path, "mixed", mixed).read_text()
    assert "more than one code version" in text and "alpha" not in text


def test_rows_without_a_score_are_refused(tmp_path):
    with pytest.raises(UserError, match="no row has a score"):
        report.write(tmp_path, "none", [{**rows()[0], "i2d_absrel": None}])
    assert not list(tmp_path.iterdir())
