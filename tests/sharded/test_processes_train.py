"""One run in 1 process, and in 4 and then 2: equal rows, weights, batches."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modality_forcing import locks
from modality_forcing.train.checkpoint import is_complete
from modality_forcing.train.logger import MEASURED
from modality_forcing.train.metrics import read_metrics
from tests.runs import ROOT, environment


def run(workdir: Path, processes: int, stop_after: int | None = None) -> str:
    """Runs tests.sharded.train_for in several processes and returns their output."""
    rest = [str(workdir)] + ([str(stop_after)] if stop_after else [])
    if processes == 1:
        command = [sys.executable, "-m", "tests.sharded.train_for", *rest]
    else:
        launcher = str(ROOT / "launch/local_multiprocess.py")
        command = [
            sys.executable,
            launcher,
            f"--processes={processes}",
            "--module=tests.sharded.train_for",
            "--",
            *rest,
        ]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def rows(workdir: Path) -> list[dict[str, float]]:
    return [
        {k: v for k, v in row.items() if not k.startswith(MEASURED)}
        for row in read_metrics(workdir)
    ]


def weights(said: str) -> float:
    return float(re.findall(r"with ([\d.]+) over", said)[0])


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> tuple[Path, str]:
    workdir = tmp_path_factory.mktemp("one") / "run"
    return workdir, run(workdir, 1)


def same(workdir: Path, said: str, one: tuple[Path, str]) -> None:
    ours, theirs = rows(workdir), rows(one[0])
    assert [row["step"] for row in theirs] == [0, 0, 1, 2, 3, 4, 4, 5, 6, 6, 6]
    evaluated = [row["step"] for row in ours if "eval/loss_image/t0.5" in row]
    assert evaluated == [0, 4, 6]
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert weights(said) == pytest.approx(weights(one[1]), rel=1e-5)


@pytest.mark.slow
def test_killed_run_of_four_processes_resumes_with_two_and_equals_one_of_one(tmp_path, one):
    said = run(tmp_path / "run", 4, stop_after=5)
    assert said.count("ended at step 5") == 4 and "over 4 devices" in said
    said = run(tmp_path / "run", 2)
    assert said.count("ended at step 6") == 2 and "over 2 devices" in said
    # Only the first process logs.
    assert "resuming from step 3 of 6" in said and said.count("resuming") == 1
    same(tmp_path / "run", said, one)


def test_processes_wait_for_the_lock_of_the_first_and_are_refused_with_it(tmp_path):
    launcher = str(ROOT / "launch/local_multiprocess.py")
    command = [sys.executable, launcher, "--processes=2", "--module=tests.sharded.hold_for", "--"]
    used = tmp_path / "used"
    with locks.hold(used, "--workdir"):
        done = subprocess.run(
            [*command, str(tmp_path / "free"), str(used)],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
        )
    said = done.stdout + done.stderr
    held = float(re.findall(r"^\[0\] held at ([\d.]+)$", said, re.MULTILINE)[0])
    collective = float(re.findall(r"^\[1\] collective at ([\d.]+)$", said, re.MULTILINE)[0])
    assert collective > held, said  # gloo gives the others 30 s, and a lease may take 60
    assert f"refused: {used}: is in use by process {os.getpid()}" in said
    assert f"refused: {used}: process 0 could not lock it" in said
    assert done.returncode == 0


LONG = """
from dataclasses import replace
from tests import tiny

def get_config(arg):
    config = tiny.t2i(batch=8, steps=100000, save_every=100000, log_every=1)
    return replace(config, model=replace(config.model, num_layers=1))
"""


@pytest.mark.slow
def test_signal_to_one_process_saves_and_ends_all_at_the_same_step(tmp_path):
    config, workdir = tmp_path / "configs/long.py", tmp_path / "run"
    config.parent.mkdir()
    config.write_text(LONG)
    train = ["train", f"--config={config}", f"--workdir={workdir}"]
    command = [sys.executable, str(ROOT / "launch/local_multiprocess.py"), "--grace=60"]
    with (tmp_path / "log").open("w+") as log:
        launcher = subprocess.Popen(
            [*command, "--", *train], env=environment(), stdout=log, stderr=log
        )
        rows = workdir / "metrics.jsonl"
        end = time.monotonic() + 200
        while not (rows.exists() and rows.read_text().count("\n") > 2) and time.monotonic() < end:
            time.sleep(0.05)
        listed = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
        second = max(map(int, listed.stdout.split()))  # the one that does not write
        os.kill(second, signal.SIGUSR1)
        code = launcher.wait(timeout=200)
        log.seek(0)
        said = log.read()
    ends = re.findall(
        r"^\[(\d)\] mforce train: stopped by SIGUSR1 at step (\d+)", said, re.MULTILINE
    )
    assert code == 143 and sorted(number for number, _ in ends) == ["0", "1"], said[-3000:]
    assert ends[0][1] == ends[1][1] and is_complete(workdir / "checkpoints" / ends[0][1])
