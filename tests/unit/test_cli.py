"""The command line: help that answers at once, and exit codes."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys

import pytest

from modality_forcing import __version__, cli, signals
from modality_forcing.errors import UserError
from tests import runs
from tests.runs import environment, refused

HELP = """
import contextlib, io, json, sys
from modality_forcing import cli
texts = {}
for arguments in ([], ["demo"], ["train"], ["sample"], ["evaluate"], ["export"]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli.main([*arguments, "--help"])
        except SystemExit as left:
            texts[" ".join(arguments)] = [left.code, out.getvalue()]
slow = ("jax", "flax", "orbax", "grain", "numpy", "ml_collections")
heavy = [name for name in slow if name in sys.modules]
print(json.dumps([texts, heavy]))
"""


@pytest.fixture(scope="module")
def helps() -> tuple[dict, list]:
    command = [sys.executable, "-c", HELP]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return tuple(json.loads(done.stdout))


def test_help_imports_nothing_slow(helps):
    assert helps[1] == []


def test_help_names_every_command(helps):
    code, text = helps[0][""]
    assert code == 0
    for command in cli.COMMANDS:
        assert re.search(rf"^    {command}\s", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("command", "words"),
    {
        "demo": ("--workdir", "--ablate", "--t2i-steps", "--forcing-steps", "report.html"),
        "train": ("--config FILE[:ARG]", "--workdir", "--config.train.steps=50"),
        "sample": ("joint, i2d, d2i, partial, t2i, i2n or d2n", "--depth-scale", "mforce sample"),
        "evaluate": ("--checkpoint", "--examples", "--out"),
        "export": ("--checkpoint", "--out", "{orbax,safetensors,stablehlo}"),
    }.items(),
)
def test_help_names_options_and_examples(helps, command, words):
    code, text = helps[0][command]
    assert code == 0
    for word in words:
        assert word in text


@pytest.fixture
def raising(monkeypatch):
    """Makes a command raise something."""

    def make(command: str, error: BaseException) -> None:
        def run(*_) -> None:
            raise error

        module = importlib.import_module(f"modality_forcing.commands.{command}")
        monkeypatch.setattr(module, "main", run)

    return make


def test_user_error_is_one_line_and_exit_code_2(mforce, raising):
    raising("export", UserError("is wrong", where="here", hint="fix\nit"))
    done = mforce("export", "--checkpoint", "c", "--out", "o")
    refused(done, r"^mforce export: here: is wrong; fix it\n$")


def test_diverged_training_is_one_line_and_exit_code_2(mforce, raising):
    raising("train", FloatingPointError("loss not finite between steps 20 and 40"))
    done = mforce("train", "--config", "c", "--workdir", "w")
    message = r"loss not finite between steps 20 and 40; lower train\.learning_rate, in another"
    refused(done, rf"^mforce train: {message} --workdir\n$")


@pytest.mark.parametrize(("command", "resumable"), [("demo", True), ("export", False)])
def test_interruption_is_exit_code_130_and_says_how_to_resume(mforce, raising, command, resumable):
    raising(command, KeyboardInterrupt())
    done = mforce(command, *(["--checkpoint", "c", "--out", "o"] if command == "export" else []))
    assert done.code == 130 and f"mforce {command}: interrupted" in done.err
    assert ("run the same command again to resume" in done.err) == resumable
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_signal_is_exit_code_143(mforce, raising, name):
    raising("demo", signals.StopRequest(getattr(signal, name)))
    done = mforce("demo")
    message = f"stopped by {name}; run the same command again to resume"
    assert (done.code, done.err) == (143, f"mforce demo: {message}\n")


def test_signal_that_broke_an_import_is_exit_code_143(mforce, raising):
    error = ImportError("partially initialized module")
    error.__cause__ = signals.StopRequest(signal.SIGTERM)
    raising("demo", error)
    done = mforce("demo")
    message = "stopped by SIGTERM; run the same command again to resume"
    assert (done.code, done.err) == (143, f"mforce demo: {message}\n")


def test_other_exceptions_pass(mforce, raising):
    raising("export", ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        mforce("export", "--checkpoint", "c", "--out", "o")


def test_error_of_the_system_is_one_line(mforce, raising, tmp_path):
    raising("export", PermissionError(13, "Permission denied", str(tmp_path / "locked")))
    done = mforce("export", "--checkpoint", "c", "--out", "o")
    refused(done, r"^mforce export: .*/locked: cannot be used \(Permission denied\); check")


def test_version(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"mforce {__version__}\n"


LOST = """
import os, sys
from modality_forcing import cli
from modality_forcing.commands import completion
def work(options):
    print("r\\xe9sult", flush=True)
    print("more")
    os.write(int(sys.argv[1]), b"done")
completion.main = work
sys.exit(cli.main(["completion", "bash"]))
"""


@pytest.mark.parametrize(
    ("redirect", "code", "message"),
    [
        (">$FULL", 2, r"its output is lost: stdout cannot be written \(No space left on device\)"),
        (">&-", 2, r"its output is lost: stdout cannot be written \(it is closed\)"),
        (">out", 0, ""),
        ("2>&-", 0, ""),
        ("2>$FULL", 0, ""),
        (">&- 2>&- <&-", 2, ""),
    ],
)
def test_lost_output_does_not_stop_the_work(tmp_path, redirect, code, message):
    full = tmp_path / "full"
    if "$FULL" in redirect:
        try:
            os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))  # as /dev/full
            full.open("wb").close()
        except PermissionError:
            pytest.skip("only root may make a device")
    done, write = os.pipe()
    shell = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(LOST)} {write} {redirect}"
    env = {**environment(), "FULL": str(full), "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(
        shell, shell=True, env=env, cwd=tmp_path, pass_fds=[write], capture_output=True, text=True
    )
    os.close(write)
    with open(done, "rb") as pipe:
        assert pipe.read() == b"done"  # the work was finished
    assert ran.returncode == code, ran
    assert ran.stderr.count("\n") == (1 if message else 0), ran.stderr
    assert re.search(message, ran.stderr)
    if redirect == ">out":
        assert (tmp_path / "out").read_text() == "r\\xe9sult\nmore\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_pipe_is_exit_code_141(unbuffered):
    read, write = os.pipe()
    os.close(read)  # as `| head` does
    try:
        env = {**environment(), "PYTHONUNBUFFERED": unbuffered}
        listing = runs.command("prepare", "--list-datasets")
        done = subprocess.run(listing, env=env, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
