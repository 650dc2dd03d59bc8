"""A sweep's folder, with training and scoring that answer at once: what is done, by whom, in which
order, and what is kept.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing.commands.sweep import dry_run, state, status
from modality_forcing.config import to_dict
from modality_forcing.errors import UserError
from modality_forcing.sweeps import run as sweep_run
from modality_forcing.sweeps.run import SweepDir, error_summary, version, work
from modality_forcing.sweeps.score import Score
from modality_forcing.sweeps.spec import Records, Run, axis, horizons, product, sweep
from modality_forcing.train.workdir import write_config
from tests import tiny


def cell(pretrained: bool, seed: int) -> Run:
    before = Run("pretraining", tiny.t2i()) if pretrained else None
    return Run("forcing", replace(tiny.forcing(), seed=seed), init_from=before)


SWEEP = sweep("tiny", product(axis("pretrained", False, True), axis("seed", 0, 1)), cell, Records())
NAMES = [c.name for c in SWEEP.cells]


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """Training that leaves what the real one leaves; returns the names of the workdirs that were
    trained.
    """
    asked: list[str] = []

    def train(config, workdir: Path, records):
        asked.append(workdir.name)
        assert records is not None and not config.data.workers
        if config.train.init_from:
            assert (Path(config.train.init_from) / "checkpoints").is_dir(), (
                "starts from what is not there yet"
            )
        write_config(workdir, config)
        (workdir / "checkpoints" / str(config.train.steps) / "meta").mkdir(parents=True)
        (workdir / "metrics.jsonl").write_text(
            '{"step": 6, "loss": 0.5}\n{"step": 6, "elapsed_s": 2.0}\n'
        )

    class Scored:
        def __init__(self, folder: Path):
            pass

        def __call__(self, cell, workdirs):
            assert set(workdirs) == {run.phase for run in cell.runs()}
            return Score(
                {"i2d_absrel": 0.25, "joint_absrel": float("nan")}, "moge, affine", "seed 0"
            )

    monkeypatch.setattr(sweep_run, "train", train)
    monkeypatch.setattr(sweep_run, "Scorer", Scored)
    return asked


def go(folder: SweepDir, cells=SWEEP.cells) -> tuple[dict[str, sweep_run.Failure], list[str]]:
    told: list[str] = []
    return work(folder, cells, told.append), told


def test_each_run_is_done_once_and_each_cell_has_a_row(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path / "run")
    assert go(folder)[0] == {}
    assert len(trained) == len(set(trained)) == len(SWEEP.runs()) == 5
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == NAMES
    assert rows[0]["i2d_absrel"] == 0.25 and rows[0]["joint_absrel"] is None  # NaN is no JSON
    assert folder.timing(SWEEP.cells[3])["seconds_pretraining"] == 2.0
    go(folder)
    assert len(trained) == 5


def test_a_run_branches_off_its_trunk_where_that_left_a_checkpoint(trained, tmp_path):
    runs = horizons("forcing", tiny.forcing(), (16, 64))
    found = sweep("tiny", axis("frames", 16, 64), lambda frames: runs[frames], Records())
    folder, short, trunk = SweepDir(found, tmp_path), runs[16], runs[64]
    assert (
        folder.config(trunk).train.keep_at_steps == (short.branch_step,)
        and not folder.config(short).train.branch_from
    )
    assert dry_run(folder, found.cells).splitlines()[:2] == [
        f"train  {trunk.folder}  16 steps",
        f"train  {short.folder}  1 steps more, of 4",
    ]
    go(folder, found.cells)
    assert trained == [trunk.folder, short.folder]
    assert not folder.config(
        short
    ).train.branch_from  # the trunk of this test kept nothing: from step 0 it is the same
    (folder.run_dir(trunk) / "checkpoints" / str(short.branch_step) / "meta").mkdir(parents=True)
    assert folder.config(short).train.branch_from == str(folder.run_dir(trunk))
    assert go(folder, found.cells)[0] == {} and len(trained) == 2
    assert "branch_from" not in str(folder.row(found.cells[0])["config"]).replace(
        "'branch_from': ''", ""
    )


def test_a_row_without_its_file_is_scored_again_and_trained_no_more(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path)
    go(folder)
    before = (tmp_path / "rows.jsonl").read_bytes()
    (tmp_path / "cells" / f"{NAMES[2]}.json").unlink()
    go(folder)
    assert len(trained) == 5 and (tmp_path / "rows.jsonl").read_bytes() == before


def test_a_folder_that_was_moved_goes_on(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path / "here")
    go(folder)
    last = SWEEP.cells[3].run
    (tmp_path / "here" / "cells" / f"{NAMES[3]}.json").unlink()
    shutil.rmtree(folder.run_dir(last) / "checkpoints")
    moved = SweepDir(SWEEP, (tmp_path / "here").rename(tmp_path / "there"))
    assert go(moved)[0] == {}
    written = json.loads((moved.run_dir(last) / "config.json").read_text())
    assert (
        written == json.loads(json.dumps(to_dict(last.config_in(moved.runs))))
        and "there" in written["train"]["init_from"]
    )


def test_a_failure_is_the_cells_own_and_is_tried_again(trained, tmp_path, monkeypatch):
    folder, stub = SweepDir(SWEEP, tmp_path), sweep_run.train

    def train(config, workdir, records):
        if workdir.name.startswith("pretraining"):
            trained.append("failed")
            raise FloatingPointError("loss not finite")
        stub(config, workdir, records=records)

    monkeypatch.setattr(sweep_run, "train", train)
    failed, told = go(folder)
    assert failed == dict.fromkeys(NAMES[2:], ("loss not finite", True))
    assert trained.count("failed") == 1  # not tried again for the second cell
    assert folder.failure_log(SWEEP.cells[2]).read_text().strip().endswith("loss not finite")
    assert [state(folder, c) for c in SWEEP.cells] == ["done", "done", "failed", "failed"]
    assert any("failed: loss not finite" in line for line in told)
    monkeypatch.setattr(sweep_run, "train", stub)
    assert go(folder)[0] == {} and [state(folder, c) for c in SWEEP.cells] == ["done"] * 4


def test_another_error_is_no_mistake_of_the_user(trained, tmp_path, monkeypatch):
    def train(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(sweep_run, "train", train)
    failed, _ = go(SweepDir(SWEEP, tmp_path), SWEEP.cells[:1])
    assert failed == {NAMES[0]: ("RuntimeError: out of memory", False)}


def test_two_processes_do_not_do_one_thing(trained, tmp_path):
    """flock tells two opened files apart, also within a process."""
    folder, shared = SweepDir(SWEEP, tmp_path), SWEEP.cells[2].runs()[0]
    with folder.try_lock(NAMES[0]) as mine, folder.try_lock(shared.folder) as too:
        assert mine and too
        assert state(folder, SWEEP.cells[0]) == "running" and "process" in folder.lock_owner(
            NAMES[0]
        )
        failed, told = go(folder)
        assert failed == {} and [state(folder, c) for c in SWEEP.cells] == [
            "running",
            "done",
            "waiting",
            "waiting",
        ]
        assert sum("waits for pretraining" in line for line in told) == 2
    assert folder.lock_owner(NAMES[0]) == ""
    go(folder)
    assert len(trained) == len(set(trained)) == 5


def test_a_row_names_every_code_that_made_it(trained, tmp_path, monkeypatch):
    folder, stub = SweepDir(SWEEP, tmp_path), sweep_run.train

    def train(config, workdir, records):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_run, "train", train)
    monkeypatch.setattr(sweep_run, "version", lambda: "0.1.0+older")
    with pytest.raises(KeyboardInterrupt):
        go(folder)
    monkeypatch.setattr(sweep_run, "train", stub)
    monkeypatch.setattr(sweep_run, "version", lambda: "0.1.0+newer")
    _, told = go(folder)
    rows = [folder.row(c) for c in SWEEP.cells]
    assert [row["version"] for row in rows if row] == [
        "0.1.0+newer, 0.1.0+older",
        *["0.1.0+newer"] * 3,
    ]
    monkeypatch.setattr(sweep_run, "version", lambda: "0.1.0+last")
    _, told = go(folder)
    assert any("4 rows are of another version of the code" in line for line in told)


def test_what_is_left_is_listed_each_run_once(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path)
    go(folder, SWEEP.cells[:1])
    lines = dry_run(folder, SWEEP.cells).splitlines()
    assert [line.split()[0] for line in lines] == [
        "train",
        "score",
        "train",
        "train",
        "score",
        "train",
        "score",
        "1",
    ]
    assert "6 steps" in lines[0] and lines[-1] == "1 of 4 cells are done"
    assert len(trained) == 1


def test_the_table_counts_what_is_left_at_the_speed_of_what_is_done(trained, tmp_path):
    folder = SweepDir(SWEEP, tmp_path)
    go(folder, SWEEP.cells[:1])
    lines = status(folder, SWEEP.cells).splitlines()
    assert lines[1].split() == [NAMES[0], "done", "6/6", "0.5000", "i2d_absrel", "0.2500"]
    assert lines[2].split() == [NAMES[1], "waiting", "0/6", "0:00:02"]
    assert lines[-1].startswith("1 done, 3 waiting; 0:00:0")


def test_a_damaged_row_is_one_line(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / f"{NAMES[0]}.json").write_text("{")
    with pytest.raises(UserError, match="is not a row"):
        SweepDir(SWEEP, tmp_path).row(SWEEP.cells[0])


def test_the_version_is_of_the_code_that_numbers_come_from():
    package = Path(sweep_run.__file__).parents[1]
    assert all((package / part).exists() for part in sweep_run.VERSIONED_PATHS)
    assert version() == version.__wrapped__() and "+" in version()


def test_an_error_is_one_line():
    assert error_summary(UserError("wrong", where="x")) == "x: wrong"
    assert error_summary(ValueError()) == "ValueError: ValueError"
