"""Runs of `launch/local_multiprocess.py`, the only launcher that runs without a cluster."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests import runs
from tests.runs import Done

LAUNCHER = runs.ROOT / "launch/local_multiprocess.py"


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(LAUNCHER), *map(str, arguments)]


def launch(*arguments: object, **variables: str) -> Done:
    environment = {**os.environ, **variables}
    done = subprocess.run(
        command(*arguments), env=environment, capture_output=True, text=True, timeout=60
    )
    return Done(done.returncode, done.stdout, done.stderr)


def attempts(done: Done) -> int:
    """Returns how often the processes were started, as the first one reports."""
    return done.out.count("[0] started")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    # A zombie only waits for its parent.
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def until(what, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


# ---- Joined by jax


@pytest.mark.parametrize(("processes", "devices", "total"), [(2, 2, 22), (4, 1, 60)])
def test_processes_share_one_mesh(processes: int, devices: int, total: int):
    options = [
        f"--processes={processes}",
        f"--devices-per-process={devices}",
        "--module=tests.collective",
    ]
    # Variables of the test's own process must not reach them.
    done = launch(
        *options,
        "--",
        "sum",
        XLA_FLAGS="--xla_force_host_platform_device_count=8",
        MFORCE_PROCESS_ID="7",
    )
    assert done.code == 0, done.err
    ids = [float(i) for i in range(processes)]
    same = f"devices {devices} of {processes * devices}, sum {total}, ids {ids}"
    for i in range(processes):
        assert f"[{i}] started with ()" in done.out
        # Gloo writes its lines in pieces, between which a line of the process may come.
        assert f"process {i} of {processes}, first {i == 0}, {same}" in done.out


def test_user_error_of_one_process_stops_all_without_retry():
    before = time.monotonic()
    done = launch(
        "--retries=3", "--grace=0.2", "--module=tests.collective", "--", "sum-then-mistake", 1
    )
    # jax alone would have waited five minutes for the other process
    assert (done.code, attempts(done)) == (2, 1) and time.monotonic() - before < 20
    assert "[1] no such folder" in done.err


def test_crash_is_retried(tmp_path):
    done = launch(
        "--retries=3",
        "--grace=0.2",
        "--module=tests.collective",
        "--",
        "sum-then-crash",
        0,
        tmp_path / "crashed",
    )
    assert (done.code, attempts(done)) == (0, 2), done.err
    assert "[0] RuntimeError: crashed on request" in done.err
    assert "launch: ended with exit code 1; attempt 2 of 4" in done.err


def test_killed_process_stops_the_others(tmp_path):
    launcher = subprocess.Popen(
        command("--grace=0.2", "--module=tests.collective", "--", "sum-then-stay", tmp_path)
    )
    until(lambda: all((tmp_path / str(i)).exists() for i in range(2)))
    pids = [int(pid) for i in range(2) for pid in (tmp_path / str(i)).read_text().split()]
    assert all(map(alive, pids))
    os.kill(pids[2], signal.SIGKILL)
    assert launcher.wait(timeout=10) == 128 + signal.SIGKILL
    until(lambda: not any(map(alive, pids)), 2)


def test_launcher_runs_as_a_script(tmp_path):
    done = launch("--retries=2", "--", "train", "--config=nowhere.py", f"--workdir={tmp_path}/run")
    assert done.code == 2 and "attempt" not in done.err
    assert re.search(r"^\[[01]\] mforce train: .*nowhere\.py", done.err, re.MULTILINE), done.err
    assert not (tmp_path / "run").exists()


# ---- Processes that end at once, without jax


@pytest.mark.parametrize(
    ("codes", "code", "tried"),
    [
        ("0,0", 0, 1),
        ("3,3", 3, 3),
        ("2,0", 2, 1),
        ("134,2", 2, 1),
        ("-9,0", 137, 3),
        ("130,130", 130, 1),
        ("143,143", 143, 3),
    ],
    ids=[
        "success",
        "crash",
        "mistake",
        "mistake and its consequence",
        "signal",
        "interrupted",
        "stopped",
    ],
)
def test_exit_code_and_number_of_attempts(codes: str, code: int, tried: int):
    done = launch("--retries=2", "--grace=0.2", "--module=tests.collective", "--", "end", codes)
    assert (done.code, attempts(done)) == (code, tried), done.err


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 143),
        (signal.SIGUSR1, 143),
        (signal.SIGKILL, -9),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGKILL"],
)
def test_stopped_launcher_leaves_no_process(sent: signal.Signals, code: int, tmp_path):
    if sent == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("children learn of the death of their parent on Linux only")
    # Tests in the background of a script ignore Ctrl-C, and the launcher would inherit that.
    launcher = subprocess.Popen(
        command("--retries=5", "--module=tests.collective", "--", "stay", tmp_path),
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    until(lambda: all((tmp_path / str(i)).exists() for i in range(2)))
    pids = [[int(pid) for pid in (tmp_path / str(i)).read_text().split()] for i in range(2)]
    launcher.send_signal(sent)
    assert launcher.wait(timeout=10) == code
    # After a SIGKILL the grandchildren are stopped by their own parents.
    expected = [pid for group in pids for pid in (group[:1] if sent == signal.SIGKILL else group)]
    until(lambda: not any(map(alive, expected)), 5)
    for group in pids:
        for pid in filter(alive, group):
            os.kill(pid, signal.SIGKILL)


def test_dry_run_prints_a_shell_command(tmp_path):
    options = ["--processes=3", "--devices-per-process=2", "--module=tests.collective"]
    printed = launch("--dry-run", *options, "--", "end", "0,0,0", "it's $HOME").out
    assert [shlex.split(line)[-5:] for line in printed.splitlines()[:-1]] == [
        ["tests.collective", "end", "0,0,0", "it's $HOME", "&"] for _ in range(3)
    ]
    assert "--xla_force_host_platform_device_count=2" in printed and "JAX_PLATFORMS=cpu" in printed
    done = subprocess.run(["bash", "-c", printed], capture_output=True, text=True)
    assert done.stdout.count("""started with ('0,0,0', "it's $HOME")""") == 3, done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes=2"], "nothing to run"),
        (["--processes=0", "--", "end"], "'0' is not a whole number from 1"),
        (["--proceses=2", "--", "end"], "unrecognized arguments: --proceses=2"),
        (["--", "train", "a\nb"], "line break"),
    ],
)
def test_user_error_is_one_line(arguments: list[str], message: str):
    done = launch(*arguments)
    assert done.code == 2 and done.out == "" and done.err.count("\n") == 1
    assert message in done.err and done.err.startswith("local_multiprocess.py: ")
