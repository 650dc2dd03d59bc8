"""Launching with SLURM: the batch script, and after which exit codes it requeues."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.fakes import PROGRAM, TRAIN, Tools, flags

SLURM = [
    "--name=run1",
    "--nodes=4",
    "--gpus-per-node=8",
    "--time=24:00:00",
    "--setup=export SET=up",
    "--env=A=b c",
]

# Runs the command of srun as two tasks, and ends with the highest code, as srun does. It passes
# SIGUSR1 on to all processes of the step, and ends them at SIGTERM.
SRUN = """
at = arguments.index("bash")
environments = [{**os.environ, "SLURM_PROCID": str(i)} for i in range(2)]
tasks = [subprocess.Popen(arguments[at:], env=environment) for environment in environments]
import signal

def send(name):
    for t in tasks:
        os.system(f"pkill -{name} -P {t.pid}; kill -{name} {t.pid}")

signal.signal(signal.SIGUSR1, lambda *_: send("USR1"))
signal.signal(signal.SIGTERM, lambda *_: send("KILL"))
sys.exit(max(t.wait() for t in tasks))
"""


@pytest.fixture
def batch(tools: Tools) -> Callable[..., tuple[int, str, list[list[str]]]]:
    """Runs the batch script with a task's shell code; returns exit code, output, scontrol calls."""
    tools.add("srun", SRUN)
    tools.add("scontrol")

    def run(
        program: str,
        *options: str,
        restarts: int = 0,
        send: signal.Signals | None = None,
        state: str = "RUNNING",
    ):
        tools.add("squeue", f"print({state!r})")
        (tools.folder / "program").write_text(f"#!/bin/bash\n{program}\n")
        (tools.folder / "program").chmod(0o755)
        python = f"--python={tools.folder}/program"
        printed = tools.launch(
            "slurm", "--dry-run", *SLURM, *options, f"--chdir={tools.folder}", python, "--", *TRAIN
        ).out
        script = printed.split("\n", 1)[1].rsplit("EOF", 1)[0]
        environment = {
            **tools.environment,
            "SLURM_JOB_ID": "7",
            "SLURM_RESTART_COUNT": str(restarts),
        }
        with (tools.folder / "out").open("w+") as out:
            running = subprocess.Popen(
                ["bash", "-c", script], env=environment, cwd=tools.folder, stdout=out, stderr=out
            )
            if send:
                deadline = time.monotonic() + 20
                tasks = [tools.folder / f"started.{task}" for task in (0, 1)]
                while not all(t.exists() for t in tasks) and time.monotonic() < deadline:
                    time.sleep(0.02)
                running.send_signal(send)
            code = running.wait(timeout=30)
            out.seek(0)
            return (
                code,
                out.read(),
                [arguments for name, arguments, _ in tools.calls() if name == "scontrol"],
            )

    return run


REQUEUED = [["requeue", "7"]]


@pytest.mark.parametrize(
    ("program", "restarts", "code", "requeued"),
    [
        ("exit 0", 0, 0, []),
        ("exit 2", 0, 2, []),
        (
            '[ "$SLURM_PROCID" = 1 ] && exit 2; exit 137',
            0,
            2,
            [],
        ),  # the highest code is not the user error's
        ("exit 1", 0, 0, REQUEUED),
        ("exit 1", 20, 1, []),
        ("exit 143", 0, 0, REQUEUED),  # another has sent a signal to a task
        ("exit 143", 20, 143, []),
        ("exit 130", 0, 130, []),
    ],
    ids=[
        "success",
        "mistake",
        "mistake of one",
        "crash",
        "too many crashes",
        "stopped",
        "stopped too often",
        "Ctrl-C",
    ],
)
def test_slurm_requeue_decision(program: str, restarts: int, code: int, requeued: list, batch):
    assert batch(program, restarts=restarts)[::2] == (code, requeued)


# A program that saves on SIGUSR1, as mforce does.
SAVES = (
    'trap "touch saved.$SLURM_PROCID; exit 143" USR1; touch started.$SLURM_PROCID; '
    "for i in $(seq 100); do sleep 0.1; done; exit 1"
)


@pytest.mark.parametrize(
    ("send", "state", "code", "requeued"),
    [
        (signal.SIGUSR1, "RUNNING", 0, REQUEUED),
        (signal.SIGTERM, "RUNNING", 0, REQUEUED),
        (signal.SIGTERM, "COMPLETING", 143, []),
    ],
    ids=["time is up", "preempted", "cancelled"],
)
def test_slurm_run_saves_before_it_ends(
    send: signal.Signals, state: str, code: int, requeued: list, batch, tools: Tools
):
    ended, out, calls = batch(SAVES, send=send, state=state)
    assert (calls, ended) == (requeued, code), out
    assert (tools.folder / "saved.0").exists() and (tools.folder / "saved.1").exists()


def test_command_arguments_are_passed_unchanged(batch):
    code, out, _ = batch('printf "<%s>\\n" "$@"; echo "$SET $A"')
    assert code == 0
    for word in PROGRAM[1:]:
        assert f"<{word}>\n" in out
    assert "up b c" in out


@pytest.mark.parametrize(("per", "tasks"), [("gpu", "8"), ("node", "1")])
def test_slurm_directives(per: str, tasks: str, tools: Tools):
    options = [f"--process-per={per}", "--cpus-per-process=12", "--partition=p", "--notice=300"]
    lines = tools.launch("slurm", "--dry-run", *SLURM, *options, "--", *TRAIN).out.splitlines()
    assert lines[:2] == ["sbatch <<'EOF'", "#!/bin/bash"] and lines[-1] == "EOF"
    passed = flags([line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")])
    expected = {
        "job-name": "run1",
        "nodes": "4",
        "gpus-per-node": "8",
        "ntasks-per-node": tasks,
        "cpus-per-task": "12",
    }
    expected |= {
        "time": "24:00:00",
        "partition": "p",
        "signal": "B:USR1@300",
        "open-mode": "append",
        "chdir": str(tools.folder),
    }
    assert expected.items() <= passed.items()
    assert "#SBATCH --requeue" in lines
    assert any(
        line.startswith("srun --kill-on-bad-exit=1 --label --cpus-per-task=12 bash")
        for line in lines
    )


def test_sbatch_reads_the_script(tools: Tools):
    tools.add("sbatch", reads=True)
    printed = tools.launch("slurm", "--dry-run", *SLURM, "--", *TRAIN).out
    assert tools.launch("slurm", *SLURM, "--", *TRAIN).code == 0
    ((_, arguments, script),) = tools.calls()
    assert arguments == [] and script and script.strip() in printed
