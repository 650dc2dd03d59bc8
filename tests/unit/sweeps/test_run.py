"""Work on a sweep's cells: order, failures, locks and versions, with stubbed training."""

from __future__ import annotations

import json
import shutil
import signal

import pytest

from modality_forcing.config import to_dict
from modality_forcing.errors import UserError
from modality_forcing.paths import write_file
from modality_forcing.signals import StopRequest
from modality_forcing.sweeps import run as sweep_run
from modality_forcing.sweeps.run import error_summary
from modality_forcing.sweeps.spec import Records, Run, axis, horizons, sweep
from modality_forcing.sweeps.status import dry_run, state
from modality_forcing.sweeps.workdir import SweepDir
from modality_forcing.train.checkpoint import META
from tests import tiny
from tests.unit.sweeps.conftest import NAMES, SWEEP, run_cells


def test_each_run_is_trained_once_and_each_cell_has_a_row(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path / "run")
    assert run_cells(folder)[0] == {}
    assert len(trained) == len(set(trained)) == len(SWEEP.runs()) == 5
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == NAMES
    assert rows[0]["i2d_absrel"] == 0.25 and rows[0]["joint_absrel"] is None  # JSON has no NaN
    assert folder.timing(SWEEP.cells[3])["seconds_pretraining"] == 2.0
    run_cells(folder)
    assert len(trained) == 5


def test_runs_share_records_only_with_the_fields_that_they_read(trained, tmp_path, monkeypatch):
    stub, read = sweep_run.train, {}

    def train(config, workdir, records, **_):
        read[config.name] = records
        stub(config, workdir, records=records)

    monkeypatch.setattr(sweep_run, "train", train)
    first = Run("pretraining", tiny.t2i())
    depth = Run("depth", tiny.forcing(), init_from=first)
    normals = Run("normals", tiny.normals(), init_from=first)
    runs = {"depth": depth, "normals": normals}
    several = sweep("tiny", axis("kind", *runs), lambda kind: runs[kind], Records())
    assert run_cells(SweepDir(several, tmp_path), several.cells)[0] == {}
    assert read["forcing"] is read["t2i"] and read["forcing"][0].normals is None
    assert read["normals"][0].normals is not None


def test_run_branches_off_its_trunk_if_the_checkpoint_exists(trained, tmp_path):
    runs = horizons("forcing", tiny.forcing(), (16, 64))
    branched = sweep("tiny", axis("frames", 16, 64), lambda frames: runs[frames], Records())
    folder, short, trunk = SweepDir(branched, tmp_path), runs[16], runs[64]
    assert folder.config(trunk).train.keep_at_steps == (short.branch_step,)
    assert not folder.config(short).train.branch_from
    assert dry_run(folder, branched.cells).splitlines()[:2] == [
        f"train  {trunk.folder}  16 steps",
        f"train  {short.folder}  1 steps more, of 4",
    ]
    run_cells(folder, branched.cells)
    assert trained == [trunk.folder, short.folder]
    # The stub keeps no checkpoint at the branch step: training from step 0 is the same run.
    assert not folder.config(short).train.branch_from
    write_file(folder.run_dir(trunk) / "checkpoints" / str(short.branch_step) / META, "{}")
    assert folder.config(short).train.branch_from == str(folder.run_dir(trunk))
    assert run_cells(folder, branched.cells)[0] == {} and len(trained) == 2
    row = folder.row(branched.cells[0])
    assert row and "branch_from" not in str(row["config"]).replace("'branch_from': ''", "")


def test_lost_row_is_scored_again_without_training(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path)
    run_cells(folder)
    before = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "cells" / f"{NAMES[2]}.json").unlink()
    run_cells(folder)
    assert len(trained) == 5 and (tmp_path / "rows.jsonl").read_bytes() == before


def test_moved_folder_resumes(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path / "here")
    run_cells(folder)
    last = SWEEP.cells[3].run
    (tmp_path / "here" / "cells" / f"{NAMES[3]}.json").unlink()
    shutil.rmtree(folder.run_dir(last) / "checkpoints")
    moved = SweepDir(SWEEP, (tmp_path / "here").rename(tmp_path / "there"))
    assert run_cells(moved)[0] == {}
    written = json.loads((moved.run_dir(last) / "config.json").read_text())
    assert written == json.loads(json.dumps(to_dict(last.config_in(moved.runs))))
    assert "there" in written["train"]["init_from"]


def test_failed_run_fails_only_its_cells_and_is_tried_again(trained, tmp_path, monkeypatch):
    folder, stub = SweepDir(SWEEP, tmp_path), sweep_run.train

    def train(config, workdir, records, **_):
        if workdir.name.startswith("pretraining"):
            trained.append("failed")
            raise FloatingPointError("loss not finite")
        stub(config, workdir, records=records)

    monkeypatch.setattr(sweep_run, "train", train)
    failed, log = run_cells(folder)
    assert failed == dict.fromkeys(NAMES[2:], ("loss not finite", True))
    assert trained.count("failed") == 1  # not tried again for the second cell
    assert folder.failure_log(SWEEP.cells[2]).read_text().strip().endswith("loss not finite")
    assert [state(folder, c) for c in SWEEP.cells] == ["done", "done", "failed", "failed"]
    assert any("failed: loss not finite" in line for line in log)
    monkeypatch.setattr(sweep_run, "train", stub)
    assert run_cells(folder)[0] == {} and [state(folder, c) for c in SWEEP.cells] == ["done"] * 4


def test_unexpected_error_is_not_a_user_error(trained, tmp_path, monkeypatch):
    def train(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(sweep_run, "train", train)
    failed, _ = run_cells(SweepDir(SWEEP, tmp_path), SWEEP.cells[:1])
    assert failed == {NAMES[0]: ("RuntimeError: out of memory", False)}


def test_signal_after_the_last_step_of_a_run_leaves_a_sweep_to_resume(
    trained, tmp_path, monkeypatch
):
    def train(*_, **__):
        raise StopRequest(signal.SIGTERM, "but the run is complete", resumes=False)

    monkeypatch.setattr(sweep_run, "train", train)
    with pytest.raises(StopRequest, match=r"^stopped by SIGTERM after forcing_") as ended:
        run_cells(SweepDir(SWEEP, tmp_path))
    assert ended.value.resumes


def test_cells_of_another_sweep_are_named(trained, tmp_path):
    run_cells(SweepDir(SWEEP, tmp_path))
    fewer = sweep(
        "tiny", axis("pretrained", False), lambda pretrained: SWEEP.cells[0].run, Records()
    )
    _, log = run_cells(SweepDir(fewer, tmp_path), fewer.cells)
    assert log[0] == (
        f"warning: 4 finished cells are of another sweep, such as {NAMES[0]}; "
        "rows.jsonl has those of this one"
    )
    assert len(list((tmp_path / "cells").glob("*.json"))) == 5


def test_locked_cells_and_runs_are_skipped(trained, tmp_path):
    """flock distinguishes two opened files also within a process."""
    folder, shared = SweepDir(SWEEP, tmp_path), SWEEP.cells[2].runs()[0]
    with folder.try_lock(NAMES[0]) as cell_locked, folder.try_lock(shared.folder) as run_locked:
        assert cell_locked and run_locked
        assert state(folder, SWEEP.cells[0]) == "running"
        assert "process" in folder.lock_owner(NAMES[0])
        failed, log = run_cells(folder)
        assert failed == {}
        states = [state(folder, c) for c in SWEEP.cells]
        assert states == ["running", "done", "waiting", "waiting"]
        assert sum("waits for pretraining" in line for line in log) == 2
    assert folder.lock_owner(NAMES[0]) == ""
    run_cells(folder)
    assert len(trained) == len(set(trained)) == 5


def test_row_names_every_version_that_trained_it(trained, tmp_path, monkeypatch):
    folder, stub = SweepDir(SWEEP, tmp_path), sweep_run.train

    def train(config, workdir, records, **_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_run, "train", train)
    monkeypatch.setattr(sweep_run, "version", lambda: "0.1.0+older")
    with pytest.raises(KeyboardInterrupt):
        run_cells(folder)
    monkeypatch.setattr(sweep_run, "train", stub)
    monkeypatch.setattr(sweep_run, "version", lambda: "0.1.0+newer")
    run_cells(folder)
    versions = [row["version"] for _, row in folder.rows()]
    assert versions == ["0.1.0+newer, 0.1.0+older", *["0.1.0+newer"] * 3]
    monkeypatch.setattr(sweep_run, "version", lambda: "0.1.0+last")
    _, log = run_cells(folder)
    assert any("4 rows are of another version of the code" in line for line in log)


def test_error_summary_is_one_line():
    assert error_summary(UserError("wrong", where="x")) == "x: wrong"
    assert error_summary(ValueError()) == "ValueError: ValueError"


def test_missing_networks_of_metrics_end_the_sweep_before_a_cell_is_trained(tmp_path, trained):
    trained.append("no inception")
    with pytest.raises(UserError, match="inception: no such file"):
        run_cells(SweepDir(SWEEP, tmp_path))
    assert trained == ["no inception"]
