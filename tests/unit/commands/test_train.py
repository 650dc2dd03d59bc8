"""`mforce train`: what the options ask of a run; tests/e2e/test_resume.py trains one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modality_forcing import distributed
from modality_forcing.evaluation.while_training import make_evaluate
from modality_forcing.train import dry_run, loop
from modality_forcing.train.profile import ProfileWindow
from tests.runs import Command, refused

RUN = ("train", "--config=configs/demo.py:phase=t2i", "--workdir=runs/t2i")


@pytest.fixture
def calls(monkeypatch) -> list[tuple[str, Any]]:
    """Replaces training by a stub; returns what was called, in order."""
    made: list[tuple[str, Any]] = []

    def train(config, workdir: Path, **how) -> None:
        made.append(("train", (config, workdir, how)))

    def check(config, workdir: Path, make_evaluate) -> str:
        made.append(("dry run", (config, workdir, make_evaluate)))
        return "start     step 0"

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(dry_run, "dry_run", check)
    monkeypatch.setattr(distributed, "initialize", lambda: made.append(("initialize", None)))
    return made


def test_processes_meet_before_the_run_starts(calls, mforce: Command):
    done = mforce(*RUN)
    assert (done.code, done.out) == (0, ""), done.err
    (first, _), (second, (config, workdir, how)) = calls
    assert (first, second) == ("initialize", "train")
    assert list(config.modalities) == ["image"] and workdir == Path("runs/t2i")
    assert how == {"make_evaluate": make_evaluate, "wandb": False, "profile": None}


def test_options_reach_the_run(calls, mforce: Command):
    options = ("--log=wandb", "--profile=20:5:all", "--config.train.steps=7")
    assert mforce(*RUN, *options).code == 0
    config, _, how = calls[1][1]
    assert config.train.steps == 7
    assert (how["wandb"], how["profile"]) == (True, ProfileWindow(20, 5, all_processes=True))


@pytest.mark.parametrize("primary", [True, False])
def test_dry_run_trains_nothing_and_is_printed_once(calls, mforce: Command, monkeypatch, primary):
    monkeypatch.setattr(distributed, "is_primary", lambda: primary)
    done = mforce(*RUN, "--dry-run")
    assert (done.code, done.out) == (0, "start     step 0\n" if primary else "")
    assert [name for name, _ in calls] == ["initialize", "dry run"]
    assert calls[1][1][1:] == (Path("runs/t2i"), make_evaluate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--profile=20"], r"--profile: '20' is not a window of steps; give FROM:COUNT"),
        (["--config.train.step=7"], r"train\.step"),
        (["--log=tensorboard"], r"invalid choice: 'tensorboard'"),
        (["--workdir="], r"--workdir: is empty"),
    ],
)
def test_mistakes_are_refused_before_training(calls, mforce: Command, options, message):
    refused(mforce(*RUN, *options), message)
    assert "train" not in [name for name, _ in calls]
