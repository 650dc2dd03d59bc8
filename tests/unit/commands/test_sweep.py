"""`mforce sweep`: its parts, exit codes and launchers; tests/e2e/test_sweep_command.py trains."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from modality_forcing import distributed
from modality_forcing.errors import UserError
from modality_forcing.sweeps import curves, report, run, status
from modality_forcing.sweeps.run import Failure
from modality_forcing.sweeps.spec import Cell
from tests.runs import Command, refused

SWEEP = """
from dataclasses import replace

from modality_forcing.sweeps.spec import Records, Run, axis, product, sweep
from tests import tiny


def cell(pretrained, seed=0):
    init_from = Run("pretraining", tiny.t2i()) if pretrained else None
    return Run("forcing", replace(tiny.forcing(), seed=seed), init_from=init_from)


def get_sweep(arg):
    if arg == "raises":
        return 1 / 0
    points = (*axis("pretrained", False), *product(axis("pretrained", True), axis("seed", 0, 1)))
    return sweep("tiny", points, cell, Records())
"""
ALONE, *SHARED = "pretrained=False", "pretrained=True,seed=0", "pretrained=True,seed=1"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "sweep_tiny.py"
    path.write_text(SWEEP)
    return path


@pytest.fixture
def worked(monkeypatch) -> list[str]:
    """Replaces training and scoring by a stub; the names of the cells that were asked for."""
    names: list[str] = []
    monkeypatch.setattr(
        run, "work", lambda folder, cells, log: names.extend(cell.name for cell in cells) or {}
    )
    return names


def command(config: Path, *options: object) -> tuple[object, ...]:
    return "sweep", f"--config={config}", f"--workdir={config.parent / 'run'}", *options


def test_shards_divide_the_groups_of_cells(config, worked, mforce: Command):
    shards = []
    for i in range(2):
        done = mforce(*command(config, f"--shard={i}/2"))
        shards.append((set(worked), done.out.splitlines()[0]))
        worked.clear()
    rows = config.parent / "run" / "rows.jsonl"
    both = (set(SHARED), f"0 of 2 cells are done; rows in {rows}")
    assert shards == [both, ({ALONE}, f"0 of 1 cells are done; rows in {rows}")]
    assert mforce(*command(config)).code == 0 and worked == [ALONE, *SHARED]


@pytest.mark.parametrize(
    ("mistakes", "code"), [([], 0), ([True], 2), ([True, True], 2), ([True, False], 1)]
)
def test_exit_code_is_2_only_if_all_failures_would_come_again(
    config, mforce: Command, monkeypatch, mistakes, code
):
    failed = {
        name: Failure(f"reason {i}", mistake)
        for i, (name, mistake) in enumerate(zip(SHARED, mistakes, strict=False))
    }
    monkeypatch.setattr(run, "work", lambda *_: failed)
    done = mforce(*command(config))
    assert done.code == code
    logs = config.parent / "run" / "failed"
    expected = [f"failed: {n}: {f.line} ({logs / n}.log)" for n, f in failed.items()]
    assert done.err.splitlines() == expected
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    other = mforce(*command(config))  # of the same run: it prints nothing
    assert (other.code, other.out, other.err) == (int(bool(failed)), "", "")


def test_report_is_written_if_rows_have_scores(config, worked, mforce: Command, monkeypatch):
    folder, found = config.parent / "run", []
    monkeypatch.setattr(report, "write", lambda *of: found.append(of) or folder / "report.html")
    assert mforce(*command(config)).out.splitlines()[1:] == [f"report in {folder}/report.html"]
    assert found == [(folder, "tiny", [], [])]

    def refuse(*_):
        raise UserError("no row has a score")

    monkeypatch.setattr(report, "write", refuse)
    done = mforce(*command(config))
    assert done.code == 0 and len(done.out.splitlines()) == 1 and done.err == ""


def test_status_draws_the_curves_that_are_there(config, worked, mforce: Command, monkeypatch):
    folder, asked = config.parent / "run", []
    folder.mkdir()

    def table(_, cells: tuple[Cell, ...]) -> str:
        asked.append([cell.name for cell in cells])
        return "cell  state"

    monkeypatch.setattr(status, "status", table)
    assert mforce(*command(config, "--status")).out == "cell  state\n"  # nothing was evaluated yet
    monkeypatch.setattr(curves, "read_curves", lambda _: [object()])
    monkeypatch.setattr(curves, "write", lambda _, path: [path.with_suffix(".png")])
    done = mforce(*command(config, "--status", "--shard=1/2"))
    assert done.out == f"cell  state\nheld-out losses so far in {folder / 'curves.png'}\n"
    assert asked == [[ALONE, *SHARED], [ALONE]] and worked == []
    assert "curves" not in mforce(*command(config, "--dry-run")).out


def test_launcher_has_a_command_per_group_of_cells_unless_jobs_says(config, mforce: Command):
    options = ("--launcher-options=--cluster='a b' --image=x", "--workdir=gs://bucket/tiny")
    done = mforce("sweep", f"--config={config}", "--launcher=gke", *options)
    assert done.code == 0, done.err
    first, second = map(shlex.split, done.out.splitlines())
    launch = ["python", "launch/gke.py", "--name=sweep-tiny-1", "--cluster=a b", "--image=x", "--"]
    sweep = ["sweep", f"--config={config}", "--workdir=gs://bucket/tiny"]
    assert second == [*launch, *sweep, "--shard=1/2"] and first[-1] == "--shard=0/2"
    one = mforce("sweep", f"--config={config}", "--launcher=gke", "--jobs=1", *options)
    assert len(one.out.splitlines()) == 1 and "--shard=0/1" in one.out


def test_launcher_has_a_command_per_shard(config, mforce):
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=nowhere.py"], r"nowhere\.py: no such sweep file"),
        (["--config=configs/demo.py"], r"demo\.py: has no get_sweep\(arg\)"),
        (["--config=configs/sweep_scenes.py:seeds=x"], r"'seeds=x' is not of type int"),
        (["--config={sweep}:raises"], r"sweep_tiny\.py:\d+: ZeroDivisionError"),
        (["--config={sweep}", "--shard=2/2"], r"--shard.*'2/2' is not I/N"),
        (["--config={sweep}", "--part=0/2"], r"--part is now --shard"),
        (["--config={sweep}", "--jobs=2"], r"--jobs and --launcher-options are for a launcher"),
        (["--config={sweep}", "--launcher=slurm", "--status"], r"makes the shards itself"),
        (["--config={sweep}", "--launcher=slurm", "--jobs=9"], r"--jobs=9.*2 groups"),
        (
            ["--config={sweep}", "--launcher=slurm", "--launcher-options='"],
            r"--launcher-options cannot be read",
        ),
        (
            ["--config={sweep}", "--workdir=ftp://bucket/x"],
            r"is an address of the kind ftp://.*use gs://",
        ),
    ],
)
def test_mistakes_are_refused_with_one_line(config, mforce, tmp_path, arguments, message):
    given = [f"--workdir={tmp_path / 'run'}", *(text.format(sweep=config) for text in arguments)]
    refused(mforce("sweep", *given), message)
    assert not (tmp_path / "run").exists()
