"""The early figure: losses of runs that still train, over the FLOPs they have spent."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.sweeps import curves, report
from modality_forcing.sweeps.curves import Curve, plot, read_curves
from modality_forcing.sweeps.price import run_flops
from modality_forcing.sweeps.workdir import SweepDir
from modality_forcing.viz import figures
from tests.unit.sweeps.conftest import SWEEP
from tests.unit.sweeps.test_figures import rows


def evaluated(folder: SweepDir, phase: str, losses: dict[int, float]) -> None:
    """Writes the rows of one run, of a phase of the first cell that has it."""
    cell = SWEEP.cells[-1]
    run = next(run for run in cell.runs() if run.phase == phase)
    lines = [
        {"step": step, "eval/loss_image": loss, "eval/loss_image/t0.3": 0.5}
        for step, loss in losses.items()
    ]
    path = folder.run_dir(run) / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5}\n')


def test_a_run_that_starts_from_another_has_its_flops_too(tmp_path):
    folder = SweepDir(SWEEP, tmp_path)
    assert read_curves(folder) == []
    pretraining, forcing = SWEEP.cells[-1].runs()
    evaluated(folder, "pretraining", {0: 2.0, 3: 1.0, 6: 0.5})
    evaluated(folder, "forcing", {0: 0.75, 3: 0.25})
    first, second = sorted(read_curves(folder), key=lambda curve: -curve.values[0])
    spent = run_flops(pretraining)
    # Nothing is spent at step 0, which a logarithmic axis cannot show.
    assert first.flops == (spent / 2, spent) and first.values == (1.0, 0.5)
    assert second.flops == (spent, spent + run_flops(forcing) / 2)
    assert second.values == (0.75, 0.25)
    assert {first.column, second.column} == {"loss_image"}


def some(column: str = "loss_image") -> list[Curve]:
    return [
        Curve(f"run{n}", column, n, (1e12, 2e12, 4e12), (0.5, 0.4, 0.5 / n)) for n in (1000, 4000)
    ]


def test_each_loss_has_a_panel_and_each_size_a_color():
    found = (
        some() + some("loss_depth") + some("loss_image_given_depth") + some("loss_depth_given_x")
    )
    with figures.style():
        drawn = plot(found)
    labels = [axes.get_ylabel() for axes in drawn.axes]
    assert labels == ["loss, image given depth", "loss, depth given x", "loss, image"]
    first = drawn.axes[0].lines
    np.testing.assert_allclose(np.asarray(first[1].get_ydata()), (0.5, 0.4, 0.5 / 4000))
    assert first[0].get_color() != first[1].get_color()
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["1 k", "4 k"]


def test_a_sweep_that_evaluates_nothing_has_no_figure():
    with pytest.raises(UserError, match=r"no run has evaluated.*set eval.every"):
        plot([])


def test_figure_is_in_the_report(tmp_path: Path):
    text = report.write(tmp_path, "scenes", rows()[:4], some()).read_text()
    assert "While training" in text and (tmp_path / "curves.png").is_file()
    assert curves.write(some(), tmp_path / "other") == [
        tmp_path / "other.png",
        tmp_path / "other.svg",
    ]
