"""Heavy libraries load in edge modules only, seen by importing each module in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import modality_forcing

ROOT = Path(modality_forcing.__file__).parent
HEAVY = ("tensorflow", "tensorflow_datasets", "clu", "grain", "torch", "transformers", "diffusers")

# The edge: where a heavy library belongs, with the reason. Everything else is core.
EDGE = {
    "data.pipeline": "is the Grain pipeline",
    "train.loop": "feeds the step from the pipeline",
    "train.init": "sets the pipeline up",
    "train.dry_run": "reads the first batch",
    "commands.demo": "runs the loop",
    "sweeps.run": "runs the loop",
    "app.page": "is made of Gradio",
    "app.widgets": "the same",
}

PROBE = """
import importlib, json, sys
modules, watched = json.loads(sys.argv[1])
blame, seen = {}, set()
for name in modules:
    try:
        importlib.import_module(name)
    except Exception as error:
        blame[name] = [f"{type(error).__name__}: {error}"]
        continue
    came = {package for package in watched if package in sys.modules} - seen
    seen |= came
    blame[name] = sorted(came)
print(json.dumps(blame))
"""


def discover() -> list[str]:
    """Every module of the package by its name below it, such as `train.step`."""
    paths = (path.relative_to(ROOT).with_suffix("") for path in ROOT.rglob("*.py"))
    return sorted(".".join(path.parts).removesuffix("__init__").rstrip(".") for path in paths)


CORE = [name for name in discover() if name not in EDGE]
HOST = ("data", "datasets", "storage", "synthetic")
DATA = [name for name in CORE if name.split(".")[0] in HOST]


def probe(names: list[str], watched: tuple[str, ...]) -> dict[str, list[str]]:
    """For each module, imported in this order: the watched packages that it was first to load."""
    full = [f"modality_forcing.{name}".rstrip(".") for name in names]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(ROOT.parent), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([full, watched])],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(names, json.loads(done.stdout.splitlines()[-1]).values(), strict=True))


@pytest.fixture(scope="module")
def loaded_by_core() -> dict[str, list[str]]:
    return probe(CORE, HEAVY)


@pytest.fixture(scope="module")
def loaded_by_data() -> dict[str, list[str]]:
    return probe(DATA, ("jax", "jaxlib", "flax", "optax", "orbax", *HEAVY))


@pytest.mark.parametrize("module", CORE, ids=lambda name: name or "modality_forcing")
def test_core_imports_no_heavy_package(module: str, loaded_by_core: dict[str, list[str]]):
    assert loaded_by_core[module] == []


@pytest.mark.parametrize("module", DATA)
def test_data_loads_without_jax(module: str, loaded_by_data: dict[str, list[str]]):
    assert loaded_by_data[module] == []


def test_help_works_without_jax():
    assert probe(["cli"], ("jax", *HEAVY)) == {"cli": []}


def test_every_exception_is_a_module():
    assert set(EDGE) <= set(discover())


def test_probe_detects_heavy_imports():
    # Without this, a probe that always answers "nothing" would pass the tests above.
    assert probe(["data.records"], ("numpy", "grain")) == {"data.records": ["numpy"]}
    broken = probe(["no_such_module"], ())["no_such_module"]
    assert "ModuleNotFoundError" in broken[0]
