"""`mforce sweep`: shared runs, rows that interruptions do not change, failures and launchers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.runs import contents, killed, process, refused

SWEEP = """
from dataclasses import replace

from modality_forcing.sweeps.spec import Records, Run, axis, horizons, product, sweep
from tests import tiny

LOOP = {"steps": 6, "save_every": 3, "log_every": 2}
RECORDS = Records(draws=2)


def cell(pretrained, seed=0, rate=1e-3):
    init_from = Run("pretraining", tiny.t2i(**LOOP, learning_rate=rate)) if pretrained else None
    config = tiny.forcing(**LOOP, allow_missing_modalities=("depth",) if pretrained else ())
    depth = replace(config.modalities["depth"], detokenizer_layers=0)  # compiles faster
    config = replace(config, seed=seed, modalities={**config.modalities, "depth": depth})
    return Run("forcing", config, init_from=init_from)


def get_sweep(arg):
    if arg in ("branch", "no_branch"):
        config = cell(False, 0).config
        config = replace(config, train=replace(config.train, save_every=9))
        runs = horizons("forcing", config, (24, 40))
        short = runs[24] if arg == "branch" else Run("forcing", runs[24].config)
        return sweep("tiny", axis("frames", 24), lambda frames: short, RECORDS)
    seeds = axis("seed", 0, 1)
    if arg == "diverges":
        points = product(axis("pretrained", True), seeds, axis("rate", 1e30))
        return sweep("tiny", points, cell, RECORDS)
    points = (*axis("pretrained", False), *product(axis("pretrained", True), seeds))
    return sweep("tiny", points, cell, RECORDS)
"""
CELLS = ["pretrained=False", "pretrained=True,seed=0", "pretrained=True,seed=1"]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "sweep_tiny.py"
    path.write_text(SWEEP)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory, config) -> Path:
    """The workdir of an uninterrupted sweep."""
    workdir = tmp_path_factory.mktemp("finished") / "sweep"
    done = process("sweep", f"--config={config}", f"--workdir={workdir}")
    assert done.code == 0, done.err
    assert "3 of 3 cells are done" in done.out
    return workdir


def kill_when_exists(arguments: tuple[str, ...], workdir: Path, pattern: str) -> None:
    assert killed(*arguments, when=lambda: any(workdir.glob(pattern))).code != 0


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_interrupted_sweep_has_bitwise_the_same_rows(finished, config, tmp_path):
    workdir = tmp_path / "elsewhere" / "sweep"
    arguments = ("sweep", f"--config={config}", f"--workdir={workdir}")
    kill_when_exists(
        arguments, workdir, "runs/forcing*/checkpoints/3/meta/metadata"
    )  # within a run
    # Between two phases, after rows were written.
    kill_when_exists(arguments, workdir, "runs/pretraining*/checkpoints/6/meta/metadata")
    assert len(list(workdir.glob("cells/*.json"))) == 1
    assert process(*arguments).code == 0
    assert contents(workdir / "cells") == contents(finished / "cells")
    assert (workdir / "rows.jsonl").read_bytes() == (finished / "rows.jsonl").read_bytes()
    assert names(workdir / "runs") == names(finished / "runs")


def test_interrupted_branch_has_the_row_of_a_run_from_step_0(config, tmp_path, monkeypatch):
    # As users compile: without the emitters of fused loops, which tests leave out to be fast, the
    # programs of two schedules round otherwise.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    rows = {}
    for kind in ("branch", "no_branch"):
        workdir = tmp_path / kind
        arguments = ("sweep", f"--config={config}:{kind}", f"--workdir={workdir}")
        if kind == "branch":
            kill_when_exists(
                arguments, workdir, "runs/forcing_w32_10_*/checkpoints/5/meta/metadata"
            )  # the trunk
            assert not list(workdir.glob("cells/*"))
        done = process(*arguments)
        assert done.code == 0, done.err
        assert ("resuming from step 5 of 6" in done.out) == (kind == "branch"), done.err
        rows[kind] = (workdir / "cells" / "frames=24.json").read_bytes()
    assert rows["branch"] == rows["no_branch"]


def test_row_has_the_columns_of_its_cell(finished):
    rows = [json.loads(line) for line in (finished / "rows.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == CELLS
    scratch, pretrained = rows[:2]
    assert (scratch["images"], scratch["frames"], pretrained["images"]) == (0, 24, 24)
    phases = pretrained["flops_pretraining"] + pretrained["flops_forcing"]
    assert pretrained["flops"] == phases > scratch["flops"] > 0
    init_from = pretrained["config"]["forcing"]["train"]["init_from"]
    assert init_from.startswith("runs/pretraining_w32_6_")
    assert 0 < scratch["params"] < scratch["params_total"]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?\+[0-9a-f]{10}", scratch["version"])
    assert "moge" in scratch["protocol"]
    for name in ("i2d_absrel", "i2d_delta1", "constant_absrel", "loss_image", "loss_depth", "loss"):
        is_baseline = name == "constant_absrel"
        assert scratch[name] > 0 and (scratch[name] == pretrained[name]) == is_baseline
    assert "pretraining_loss_image" in pretrained and "pretraining_loss_image" not in scratch
    assert not any("seconds" in name for name in scratch)


def test_pretraining_is_shared(finished):
    assert len(list(finished.glob("runs/pretraining*"))) == 1
    assert len(list(finished.glob("runs/forcing*"))) == 3


def test_csv_opens_as_a_table(finished):
    from modality_forcing.laws.rows import read

    rows = read(finished / "rows.csv")
    assert list(rows.numbers("images")) == [0, 24, 24] and (rows.numbers("seconds") > 0).all()
    assert [row["seconds_pretraining"] == "" for row in rows.cells] == [True, False, False]


def test_finished_sweep_trains_nothing(finished, config, mforce):
    before = {p: p.stat().st_mtime_ns for p in (finished / "cells").iterdir()}
    arguments = ("sweep", f"--config={config}", f"--workdir={finished}")
    assert mforce(*arguments).code == 0
    assert {p: p.stat().st_mtime_ns for p in (finished / "cells").iterdir()} == before
    assert mforce(*arguments, "--dry-run").out == "3 of 3 cells are done\n"


def test_status_is_a_table(finished, config, mforce, tmp_path):
    table = mforce("sweep", f"--config={config}", f"--workdir={finished}", "--status").out
    done = r"pretrained=True,seed=1 +done +12/12 +\d+\.\d+ +i2d_absrel 0\.\d+"
    assert re.search(done, table), table
    assert "3 done; 0:00 left" in table
    table = mforce("sweep", f"--config={config}", f"--workdir={tmp_path}", "--status").out
    assert re.search(r"pretrained=True,seed=1 +waiting +0/12 +\?\n", table), table
    done = mforce("sweep", f"--config={config}", f"--workdir={tmp_path / 'new'}", "--status")
    assert done.code == 2 and not (tmp_path / "new").exists()
    assert "/new: no such folder; check --workdir, or start the sweep without" in done.err


def test_failed_cell_is_named_with_the_last_line_of_its_log(config, mforce, tmp_path):
    arguments = ("sweep", f"--config={config}:diverges", f"--workdir={tmp_path}")
    done = mforce(*arguments)
    assert done.code == 2
    failures = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 2, done.err
    assert all("seed=" in line and "not finite" in line for line in failures), done.err
    assert done.err.count("pretraining_w32_6_") == 1  # not tried again for the second cell
    assert "0 of 2 cells are done" in done.out
    log = (tmp_path / "failed" / "pretrained=True,seed=0,rate=1e+30.log").read_text()
    assert "not finite" in log.strip().splitlines()[-1]
    assert "failed" in mforce(*arguments, "--status").out


def test_row_of_another_sweep_is_refused(finished, config, mforce, tmp_path):
    cells = tmp_path / "cells"
    cells.mkdir()
    row = json.loads((finished / "cells" / f"{CELLS[0]}.json").read_text()) | {"digest": "another"}
    del row["checksum"]
    (cells / f"{CELLS[0]}.json").write_text(json.dumps(row))
    status = mforce("sweep", f"--config={config}", f"--workdir={tmp_path}", "--status")
    refused(status, r"row of a cell with another config")


def test_plan_prices_a_sweep(config, mforce):
    plan = ("plan", f"--sweep={config}")
    done = mforce(*plan, "--chip", "v5p", "--mfu=0.5", "--json")
    price = json.loads(done.out)
    assert (price["cells"], len(price["runs"]), price["chips"][0]["mfu"]) == (3, 4, 0.5)
    assert price["flops"] < price["flops_unshared"]
    refused(mforce(*plan, "--chip", "abacus"), "unknown chip 'abacus'")
    refused(mforce(*plan, "--mfu=2"), "MFU of 2")
    refused(mforce(*plan, "--topology=v5p:2x2x1"), "--sweep does not take --topology")
