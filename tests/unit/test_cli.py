"""The command line's own part: parsing, overrides, exit codes, and help that answers at once."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys

import pytest

from modality_forcing import cli
from modality_forcing.commands.arguments import finite_float, positive_int, split_overrides
from modality_forcing.errors import UserError
from tests import runs
from tests.runs import environment, refused

COMMANDS = ("demo", "train", "sample", "evaluate", "export")

HELP = """
import contextlib, io, json, sys
from modality_forcing import cli
from modality_forcing.commands.arguments import finite_float, positive_int, split_overrides
told = {}
for arguments in ([], ["demo"], ["train"], ["sample"], ["evaluate"], ["export"]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            cli.main([*arguments, "--help"])
        except SystemExit as left:
            told[" ".join(arguments)] = [left.code, out.getvalue()]
heavy = [name for name in ("jax", "flax", "orbax", "grain", "numpy", "ml_collections") if name in sys.modules]
print(json.dumps([told, heavy]))
"""


@pytest.fixture(scope="module")
def helps() -> tuple[dict, list]:
    done = subprocess.run(
        [sys.executable, "-c", HELP], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return tuple(json.loads(done.stdout))


def test_help_loads_nothing_that_takes_long(helps):
    assert helps[1] == []


def test_help_names_every_command(helps):
    code, text = helps[0][""]
    assert code == 0
    for command in COMMANDS:
        assert f"\n    {command}  " in text


@pytest.mark.parametrize(
    ("command", "words"),
    {
        "demo": (
            "--workdir",
            "--ablate",
            "--t2i-steps",
            "--forcing-steps",
            "--examples",
            "report.html",
        ),
        "train": ("--config FILE[:ARG]", "--workdir", "--config.train.steps=50"),
        "sample": (
            "--checkpoint",
            "joint, i2d, d2i, partial or t2i",
            "--depth-scale",
            "0.001",
            "--caption",
            "--refine",
            "mforce sample --",
        ),
        "evaluate": ("--checkpoint", "--examples", "--out"),
        "export": ("--checkpoint", "--out", "{orbax,safetensors}"),
    }.items(),
)
def test_help_says_how(helps, command, words):
    code, text = helps[0][command]
    assert code == 0
    for word in words:
        assert word in text


def test_overrides_are_taken_out_in_both_spellings():
    arguments = [
        "train",
        "--config.train.steps=5",
        "--config",
        "c.py",
        "--config.train.init_from",
        "a=b",
        "--config.sample.timestep_shift",
        "-1",
    ]
    plain, overrides = split_overrides(arguments, cli.build_parser())
    assert plain == ["train", "--config", "c.py"]
    assert overrides == {
        "train.steps": "5",
        "train.init_from": "a=b",
        "sample.timestep_shift": "-1",
    }


@pytest.fixture
def raising(monkeypatch):
    """Makes a command raise something."""

    def make(command: str, error: BaseException) -> None:
        def run(*_) -> None:
            raise error

        module = importlib.import_module(f"modality_forcing.commands.{command}")
        monkeypatch.setattr(module, "main", run)

    return make


def test_a_users_mistake_is_one_line_and_two(mforce, raising):
    raising("export", UserError("is wrong", where="here", hint="hint\nit"))
    done = mforce("export", "--checkpoint", "c", "--out", "o")
    refused(done, r"^mforce export: here: is wrong; hint it\n$")


def test_a_loss_that_is_not_finite_is_one_line_and_two(mforce, raising):
    raising("train", FloatingPointError("loss not finite between steps 20 and 40"))
    done = mforce("train", "--config", "c", "--workdir", "w")
    refused(
        done,
        r"^mforce train: loss not finite between steps 20 and 40; lower train\.learning_rate, in another --workdir\n$",
    )


@pytest.mark.parametrize(("command", "goes_on"), [("demo", True), ("export", False)])
def test_an_interruption_is_130_and_says_whether_it_can_go_on(mforce, raising, command, goes_on):
    raising(command, KeyboardInterrupt())
    done = mforce(command, *(["--checkpoint", "c", "--out", "o"] if command == "export" else []))
    assert done.code == 130
    assert ("run the same command again to resume" in done.err) == goes_on and done.err.count(
        "\n"
    ) == 1


def test_a_bug_is_not_hidden(mforce, raising):
    raising("export", ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        mforce("export", "--checkpoint", "c", "--out", "o")


@pytest.mark.parametrize("text", ["1", "12", " 7 "])
def test_counts(text):
    assert positive_int(text) == int(text)


@pytest.mark.parametrize(
    ("convert", "text"),
    [(positive_int, "0"), (positive_int, "x"), (finite_float, "inf"), (finite_float, "")],
)
def test_what_is_no_count_or_number(convert, text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is not a"):
        convert(text)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_seen_enough_is_no_mistake(unbuffered):
    read, write = os.pipe()
    os.close(read)  # as `| head` does
    try:
        listing, variables = (
            runs.command("prepare", "--list"),
            {**environment(), "PYTHONUNBUFFERED": unbuffered},
        )
        done = subprocess.run(
            listing, env=variables, stdout=write, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
