"""The SkyPilot file: its shell script with a fake mforce, and what it restarts.

SkyPilot itself is not needed: the scripts run in a local shell.
"""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml

from tests.fakes import Tools
from tests.runs import ROOT, Done

TASK = yaml.safe_load((ROOT / "launch/skypilot.yaml").read_text())
BODY = """
codes = pathlib.Path("codes").read_text().split()
pathlib.Path("codes").write_text(" ".join(codes[1:]))
keys = [key for key in os.environ if key.startswith("MFORCE_")]
print({key: os.environ[key] for key in sorted(keys)})
sys.exit(int(codes[0]))
"""


def run(tools: Tools, codes: str, **environment: str) -> Done:
    """Runs the script with an mforce that ends with these codes."""
    (tools.folder / "mforce/bin").mkdir(parents=True)
    tools.add("mforce/bin/mforce", BODY)
    (tools.folder / "codes").write_text(codes)
    sky = {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "10.0.0.1"}
    given = {key: str(value) for key, value in TASK["envs"].items()}
    tools.environment |= {**given, **sky, "CRASHES": "2", **environment}
    return tools.run("bash", "-c", TASK["run"])


@pytest.mark.parametrize(
    ("codes", "ends", "calls"),
    [
        ("0", 0, 1),
        ("2", 2, 1),
        ("143", 143, 1),
        ("1 139 0", 0, 3),
        ("1 1 1 0", 1, 3),
        ("1 2", 2, 2),
    ],
)
def test_crashes_are_restarted_and_mistakes_are_not(
    codes: str, ends: int, calls: int, tools: Tools
):
    done = run(tools, codes)
    made = tools.calls()
    assert (done.code, len(made)) == (ends, calls), done.err
    expected = [*TASK["envs"]["COMMAND"].split(), f"--workdir={TASK['envs']['WORKDIR']}"]
    assert [arguments for _, arguments, _ in made] == [expected] * calls


def test_machines_with_gpus_find_each_other(tools: Tools):
    nodes = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    done = run(tools, "0", EXTRA="cuda12", SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2", **nodes)
    names = ("COORDINATOR", "PROCESS_COUNT", "PROCESS_ID")
    values = ("10.0.0.1:8476", "2", "1")
    expected = {f"MFORCE_{name}": value for name, value in zip(names, values, strict=True)}
    assert done.out.strip() == str(expected), done.err


def test_sigterm_reaches_the_run_which_saves(tools: Tools):
    body = """
import signal, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
os.kill(int(os.environ["SHELL_PID"]), signal.SIGTERM)
time.sleep(30)
"""
    (tools.folder / "mforce/bin").mkdir(parents=True)
    tools.add("mforce/bin/mforce", body)
    given = {key: str(value) for key, value in TASK["envs"].items()}
    tools.environment |= {**given, "SKYPILOT_NUM_NODES": "1"}
    done = tools.run("bash", "-c", "export SHELL_PID=$$\n" + TASK["run"])
    assert done.code == 143 and len(tools.calls()) == 1, done.err


def test_stopped_runs_are_recovered_and_extras_exist():
    recovery = TASK["resources"]["job_recovery"]
    assert recovery == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [143]}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (names,) = re.findall(r"\.\[\$EXTRA,([\w,]+)\]", TASK["setup"])
    assert {TASK["envs"]["EXTRA"], *names.split(",")} <= set(extras)
