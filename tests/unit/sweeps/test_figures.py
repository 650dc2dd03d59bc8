"""Figure 4 of a sweep: a line for each number of pretraining images, through means over seeds."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.sweeps import figures as sweep_figures
from modality_forcing.viz import figures


def rows() -> list[dict]:
    """Rows of three sizes, two amounts of pretraining and two seeds; scores follow a power law."""
    return [
        {
            "cell": f"{params}-{images}-{seed}",
            "axes": {"size": f"{params}-{images}", "seed": seed},
            "width": 8,
            "params": params,
            "images": images,
            "frames": 900,
            "seed": seed,
            "flops": 10**12,
            "i2d_absrel": params**-0.2 + 0.1 * (images == 0) + 0.002 * seed,
            "i2d_delta1": 1 - params**-0.2,
            "row_mean_absrel": 0.2,
            "constant_absrel": 9.0,
            "version": "1",
            "protocol": "p",
            "seeds": "s",
            "device": "cpu",
        }
        for params in (1000, 4000, 16_000)
        for images in (0, 8000)
        for seed in (0, 1)
    ]


def curves(axes) -> dict:
    labeled = {line.get_label(): line for line in axes.lines}
    return {label: line for label, line in labeled.items() if not str(label).startswith("_")}


def test_lines_connect_the_means_and_points_are_seeds():
    with figures.style():
        drawn = sweep_figures.plot(rows())
    left = drawn.axes[0]
    lines = curves(left)
    assert list(lines) == ["none", "8 k"]
    means = [n**-0.2 + 0.101 for n in (1000, 4000, 16_000)]
    np.testing.assert_allclose(lines["none"].get_ydata(), means)
    points = [line for line in left.lines if len(np.atleast_1d(line.get_xdata())) == 6]
    assert len(points) == 2  # six seeds each
    # The best constant is too far off to be drawn.
    assert [text.get_text() for text in left.texts] == ["mean of each row"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["1 k", "4 k", "16 k"]


def split_rows() -> list[dict]:
    return [
        row | {"axes": {"budget": budget, "share": share, "seed": row["seed"]}, "i2d_absrel": error}
        for row in rows()[:2]
        for budget in (600, 2400)
        for share in (0.0, 0.5, 0.9)
        for error in [(share - 0.5) ** 2 + 60 / budget + 0.02 * row["seed"]]
    ]


def test_split_of_a_budget_has_a_line_for_each_budget():
    with figures.style():
        drawn = sweep_figures.plot([row | {"loss_image": 0.1} for row in split_rows()])
    left, right = drawn.axes
    lines = curves(left)
    assert list(lines) == ["600", "2.4 k"]
    np.testing.assert_allclose(lines["600"].get_ydata(), [0.36, 0.11, 0.27])
    np.testing.assert_allclose(curves(right)["600"].get_ydata(), 0.1)
    assert left.get_xscale() == "linear"
    assert [label.get_text() for label in left.get_xticklabels()] == ["0%", "50%", "90%"]


def test_split_scored_on_benchmarks_has_their_mean_error_alone():
    kept = ("axes", "images", "frames", "params")
    of_benchmarks = [
        {name: row[name] for name in kept} | {"absrel": row["i2d_absrel"]} for row in split_rows()
    ]
    with figures.style():
        (axes,) = sweep_figures.plot(of_benchmarks).axes
    np.testing.assert_allclose(curves(axes)["600"].get_ydata(), [0.36, 0.11, 0.27])


def test_several_lengths_of_post_training_have_a_panel():
    shorter = [{**row, "frames": 300, "i2d_absrel": row["i2d_absrel"] + 0.5} for row in rows()]
    with figures.style():
        drawn = sweep_figures.plot([*rows(), *shorter])
    left, _, right = drawn.axes
    longest = [n**-0.2 + 0.001 for n in (1000, 4000, 16_000)]
    np.testing.assert_allclose(curves(left)["8 k"].get_ydata(), longest)
    largest = curves(right)["8 k"]
    np.testing.assert_allclose(largest.get_xdata(), [300, 900])
    np.testing.assert_allclose(largest.get_ydata(), [16_000**-0.2 + 0.501, 16_000**-0.2 + 0.001])
    assert right.get_xlabel() == "post-training frames, N = 16 k"


def test_benchmark_scores_are_plotted_without_baselines(tmp_path):
    benchmarks = [{k.replace("i2d_", ""): v for k, v in row.items()} for row in rows()]
    written = sweep_figures.write(benchmarks, tmp_path / "figure4")
    assert [path.name for path in written] == ["figure4.png", "figure4.svg"]
    assert all(path.stat().st_size for path in written)
    with figures.style():
        assert not sweep_figures.plot(benchmarks).axes[0].texts


def test_rows_without_a_score_are_ignored():
    with figures.style():
        drawn = sweep_figures.plot([*rows(), {**rows()[0], "params": 7, "i2d_absrel": None}])
    assert drawn.axes[0].get_xlim()[0] > 7
    with pytest.raises(UserError, match="no row has a score"):
        sweep_figures.plot([{**row, "i2d_absrel": None} for row in rows()])
