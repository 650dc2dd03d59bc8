"""The wheel is built, installed and run outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from modality_forcing import __version__
from tests.runs import ROOT, SMALL, TINY_DEMO

SOURCES = ("modality_forcing", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")

pytestmark = pytest.mark.skipif(
    int(version("setuptools").partition(".")[0]) < 77,
    reason="pyproject.toml needs setuptools 77 or newer; the extra `test` installs it",
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds only the package, installed from a wheel."""
    work = tmp_path_factory.mktemp("wheel")
    (work / "tree").mkdir()
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, work / "tree" / name)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", work / "dist", work / "tree"]
    subprocess.run(build, check=True)
    (wheel,) = (work / "dist").glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", work / "site", wheel]
    subprocess.run(install, check=True)
    return work / "site"


@pytest.fixture(scope="module")
def run(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs the installed mforce in an empty folder and returns its output."""
    work_dir = tmp_path_factory.mktemp("work_dir")
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(installed)}

    def mforce(*arguments: object) -> str:
        command = [sys.executable, installed / "bin" / "mforce", *map(str, arguments)]
        done = subprocess.run(command, env=env, cwd=work_dir, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return mforce


def test_wheel_holds_the_configs_and_data_files(installed: Path):
    package = installed / "modality_forcing"
    configs = {path.name for path in (ROOT / "configs").glob("*.py")}
    assert {path.name for path in (package / "configs").glob("*.py")} == configs
    lists = {path.name for path in (ROOT / "modality_forcing/datasets/lists").iterdir()}
    assert {path.name for path in (package / "datasets/lists").iterdir()} == lists
    assert (package / "py.typed").is_file() and not (installed / "tests").exists()


def test_commands_run_outside_the_checkout(run: Callable[..., str]):
    assert run("--version") == f"mforce {__version__}\n"
    assert "mforce sample --checkpoint" in run("sample", "--help")

    steps = ["--config.train.steps=2", "--config.train.batch=2", "--config.data.num_scenes=8"]
    run("train", "--config=demo:phase=t2i", "--workdir=t2i", *SMALL, *steps)
    image = run("sample", "--checkpoint=t2i", "--mode=t2i", "--out=out", "--steps=1").split()
    assert image == ["out/t2i_000_image.png"]

    assert "cells" in run("sweep", "--config=sweep_scenes", "--workdir=study", "--dry-run")
    prices = json.loads(run("plan", "--sweep=sweep_scenes", "--json"))
    assert prices


@pytest.mark.slow
def test_demo_runs_outside_the_checkout(run: Callable[..., str]):
    assert "image to depth: AbsRel" in run("demo", "--workdir=demo", *TINY_DEMO)
