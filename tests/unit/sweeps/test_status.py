"""The state of a sweep: what is left, and the table with its time left."""

from __future__ import annotations

from modality_forcing.sweeps.status import dry_run, status
from modality_forcing.sweeps.workdir import SweepDir
from tests.unit.sweeps.conftest import NAMES, SWEEP, run_cells


def test_dry_run_lists_each_run_once(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path)
    run_cells(folder, SWEEP.cells[:1])
    lines = dry_run(folder, SWEEP.cells).splitlines()
    actions = [line.split()[0] for line in lines]
    assert actions == ["train", "score", "train", "train", "score", "train", "score", "1"]
    assert "6 steps" in lines[0] and lines[-1] == "1 of 4 cells are done"
    assert len(trained) == 1


def test_status_estimates_the_time_left_from_finished_runs(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path)
    run_cells(folder, SWEEP.cells[:1])
    lines = status(folder, SWEEP.cells).splitlines()
    assert lines[1].split() == [NAMES[0], "done", "6/6", "0.5000", "i2d_absrel", "0.2500"]
    assert lines[2].split() == [NAMES[1], "waiting", "0/6", "0:02"]
    assert lines[-1].startswith("1 done, 3 waiting; 0:0")
