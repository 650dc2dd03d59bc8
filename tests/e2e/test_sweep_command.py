"""`mforce sweep` as a person gives it: shared runs once, the same rows to the bit however often it was killed, failures named."""

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


def get_sweep(arg):
    def cell(pretrained, seed, rate=1e-3):
        before = Run("pretraining", tiny.t2i(**LOOP, learning_rate=rate)) if pretrained else None
        config = tiny.forcing(**LOOP, allow_missing_modalities=("depth",) if pretrained else ())
        depth = replace(config.modalities["depth"], detokenizer_layers=0)  # compiles faster
        return Run("forcing", replace(config, seed=seed, modalities={**config.modalities, "depth": depth}), init_from=before)

    if arg in ("branches", "whole"):
        config = cell(False, 0).config
        runs = horizons("forcing", replace(config, train=replace(config.train, save_every=9)), (24, 40))
        short = runs[24] if arg == "branches" else Run("forcing", runs[24].config)
        return sweep("tiny", axis("frames", 24), lambda frames: short, Records(draws=2))
    seeds = axis("seed", 0, 1)
    if arg == "diverges":
        return sweep("tiny", product(axis("pretrained", True), seeds, axis("rate", 1e30)), cell, Records(draws=2))
    if arg == "raises":
        return 1 / 0
    return sweep("tiny", product(axis("pretrained", False, True), seeds), cell, Records(draws=2))
"""
CELLS = [f"pretrained={p},seed={s}" for p in (False, True) for s in (0, 1)]


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "sweep_tiny.py"
    path.write_text(SWEEP)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, config) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "sweep"
    done = process("sweep", f"--config={config}", f"--workdir={workdir}")
    assert done.code == 0, done.err
    assert "4 of 4 cells are done" in done.out
    return workdir


def test_killed_at_several_points_it_comes_to_the_same_rows_to_the_bit(whole, config, tmp_path):
    workdir = tmp_path / "elsewhere" / "sweep"
    arguments = ("sweep", f"--config={config}", f"--workdir={workdir}")
    points = [
        lambda: list(workdir.glob("runs/forcing*/checkpoints/3")),  # in the middle of a run
        lambda: list(
            workdir.glob("runs/pretraining*/checkpoints/6")
        ),  # between two phases, with rows written before
    ]
    for when in points:
        assert killed(*arguments, when=lambda when=when: bool(when())).code != 0
    assert len(list(workdir.glob("cells/*.json"))) == 2
    assert process(*arguments).code == 0
    assert contents(workdir / "cells") == contents(whole / "cells")
    assert (workdir / "rows.jsonl").read_bytes() == (whole / "rows.jsonl").read_bytes()
    assert {p.name for p in (workdir / "runs").iterdir()} == {
        p.name for p in (whole / "runs").iterdir()
    }


def test_a_branch_has_the_row_of_a_whole_run_however_often_it_was_killed(config, tmp_path):
    rows = {}
    for way in ("branches", "whole"):
        arguments = ("sweep", f"--config={config}:{way}", f"--workdir={tmp_path / way}")
        if way == "branches":
            for left in (
                "runs/forcing_w32_10_*/checkpoints/5",
                "runs/forcing_w32_6_*/config.json",
            ):  # in the trunk, in the branch
                assert (
                    killed(
                        *arguments,
                        when=lambda left=left: bool(list((tmp_path / "branches").glob(left))),
                    ).code
                    != 0
                )
            assert not list((tmp_path / "branches").glob("cells/*"))
        done = process(*arguments)
        assert done.code == 0 and ("resuming from step 5 of 6" in done.out) == (
            way == "branches"
        ), done.err
        rows[way] = (tmp_path / way / "cells" / "frames=24.json").read_bytes()
    assert rows["branches"] == rows["whole"]


def test_a_row_says_what_it_is_of(whole):
    rows = [json.loads(line) for line in (whole / "rows.jsonl").read_text().splitlines()]
    assert [row["cell"] for row in rows] == CELLS
    scratch, pretrained = rows[0], rows[2]
    assert (scratch["images"], scratch["frames"], pretrained["images"]) == (0, 24, 24)
    assert (
        pretrained["flops"]
        == pretrained["flops_pretraining"] + pretrained["flops_forcing"]
        > scratch["flops"]
        > 0
    )
    assert pretrained["config"]["forcing"]["train"]["init_from"].startswith(
        "runs/pretraining_w32_6_"
    )
    assert 0 < scratch["params"] < scratch["params_total"]
    assert (
        re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{10}", scratch["version"])
        and "moge" in scratch["protocol"]
    )
    for name in ("i2d_absrel", "i2d_delta1", "constant_absrel", "loss_image", "loss_depth", "loss"):
        assert scratch[name] > 0 and (scratch[name] == pretrained[name]) == (
            name == "constant_absrel"
        )
    assert "pretraining_loss_image" in pretrained and "pretraining_loss_image" not in scratch
    assert not any("seconds" in name for name in scratch)


def test_pretraining_is_shared(whole):
    assert (
        len(list(whole.glob("runs/pretraining*"))) == 1
        and len(list(whole.glob("runs/forcing*"))) == 4
    )


def test_the_table_opens_as_a_table(whole):
    from modality_forcing.laws.table import read

    rows = read(whole / "rows.csv")
    assert list(rows.numbers("images")) == [0, 0, 24, 24] and (rows.numbers("seconds") > 0).all()
    assert [row["seconds_pretraining"] == "" for row in rows.cells] == [True, True, False, False]


def test_again_it_does_nothing(whole, config, mforce):
    before = {p: p.stat().st_mtime_ns for p in (whole / "cells").iterdir()}
    assert mforce("sweep", f"--config={config}", f"--workdir={whole}").code == 0
    assert {p: p.stat().st_mtime_ns for p in (whole / "cells").iterdir()} == before
    told = mforce("sweep", f"--config={config}", f"--workdir={whole}", "--dry-run").out
    assert told == "4 of 4 cells are done\n"


def test_its_state_is_a_table(whole, config, mforce, tmp_path):
    table = mforce("sweep", f"--config={config}", f"--workdir={whole}", "--status").out
    assert re.search(r"pretrained=True,seed=1 +done +12/12 +\d+\.\d+ +i2d_absrel 0\.\d+", table), (
        table
    )
    assert "4 done; 0:00 left" in table
    table = mforce("sweep", f"--config={config}", f"--workdir={tmp_path / 'new'}", "--status").out
    assert re.search(r"pretrained=True,seed=1 +waiting +0/12 +\?\n", table), table
    assert not (tmp_path / "new").exists()


def test_a_cell_that_fails_is_named_with_the_last_line_of_its_log(config, mforce, tmp_path):
    done = mforce("sweep", f"--config={config}:diverges", f"--workdir={tmp_path}")
    assert done.code == 2
    named = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert len(named) == 2 and all("seed=" in line and "not finite" in line for line in named), (
        done.err
    )
    assert done.err.count("pretraining_w32_6_") == 1  # it was not tried for the second cell
    assert "0 of 2 cells are done" in done.out
    log = (tmp_path / "failed" / "pretrained=True,seed=0,rate=1e+30.log").read_text()
    assert "not finite" in log.strip().splitlines()[-1]
    assert (
        "failed"
        in mforce("sweep", f"--config={config}:diverges", f"--workdir={tmp_path}", "--status").out
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--config=nowhere.py"], r"nowhere\.py: no such sweep file"),
        (["--config=configs/demo.py"], r"demo\.py: has no get_sweep\(arg\)"),
        (["--config=configs/sweep_scenes.py:seeds=x"], r"'seeds=x' is not of type int"),
        (["--config={sweep}:raises"], r"sweep_tiny\.py:\d+: ZeroDivisionError"),
        (["--config={sweep}", "--shard=2/2"], r"--shard.*'2/2' is not I/N"),
        (["--config={sweep}", "--jobs=2"], r"--jobs and --launcher-options are for a launcher"),
        (["--config={sweep}", "--launcher=slurm", "--status"], r"makes the shards itself"),
        (["--config={sweep}", "--launcher=slurm", "--jobs=9"], r"--jobs=9.*3 groups"),
        (
            ["--config={sweep}", "--launcher=slurm", "--launcher-options='"],
            r"--launcher-options cannot be read",
        ),
        (["--config={sweep}", "--workdir=gs://bucket/x"], r"is an address.*--workdir"),
    ],
)
def test_mistakes_are_one_line(config, mforce, tmp_path, arguments, told):
    given = [f"--workdir={tmp_path / 'run'}", *(text.format(sweep=config) for text in arguments)]
    refused(mforce("sweep", *given), told)
    assert not (tmp_path / "run").exists()


def test_the_row_of_another_sweep_is_not_taken_for_its_own(whole, config, mforce, tmp_path):
    cells = tmp_path / "cells"
    cells.mkdir()
    row = json.loads((whole / "cells" / f"{CELLS[0]}.json").read_text()) | {"digest": "another"}
    (cells / f"{CELLS[0]}.json").write_text(json.dumps(row))
    refused(
        mforce("sweep", f"--config={config}", f"--workdir={tmp_path}", "--status"),
        r"row of a cell with another config",
    )


def test_a_launcher_gets_a_command_per_part(config, mforce):
    options = (
        "--launcher=slurm",
        "--jobs=2",
        "--launcher-options=--nodes=1 --time=4:00:00",
        "--workdir=/nfs/tiny",
        "--dry-run",
    )
    lines = mforce("sweep", f"--config={config}", *options).out.splitlines()
    assert lines[1] == (
        "python launch/slurm.py --name=sweep-tiny-1 --dry-run --nodes=1 --time=4:00:00 --"
        f" sweep --config={config} --workdir=/nfs/tiny --shard=1/2"
    )
    assert len(lines) == 2


def test_a_sweep_is_priced_before_it_starts(config, mforce):
    done = mforce("plan", f"--sweep={config}", "--chip", "v5p", "--mfu=0.5", "--json")
    told = json.loads(done.out)
    assert (told["cells"], len(told["runs"]), told["chips"][0]["mfu"]) == (4, 5, 0.5)
    assert told["flops"] < told["flops_unshared"]
    refused(mforce("plan", f"--sweep={config}", "--chip", "abacus"), "unknown chip 'abacus'")
    refused(mforce("plan", f"--sweep={config}", "--mfu=2"), "MFU of 2")
    refused(
        mforce("plan", f"--sweep={config}", "--topology=v5p:2x2x1"),
        "--sweep has no use for --topology",
    )
