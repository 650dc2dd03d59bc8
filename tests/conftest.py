"""What every test starts from: jax on the CPU, repeatable examples, real pictures where a folder is named."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  # the hook names it

if TYPE_CHECKING:
    from tests.runs import Done

# Before anything imports jax. setdefault: whoever asks for another platform gets it.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What one test or command of a session has compiled, the others read: many run the same program. Not where XLA remarks
# on stderr that it does so: tests ask for silence there.
_compiled = tempfile.TemporaryDirectory(prefix="mforce-compiled-", ignore_cleanup_errors=True)
_kept = {
    "JAX_COMPILATION_CACHE_DIR": _compiled.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
if tuple(map(int, version("jax").split(".")[:2])) >= (0, 10):
    os.environ.update({**_kept, **os.environ})  # as setdefault

# Every annotation of the package is checked at run time, shapes included.
install_import_hook("modality_forcing", "tests.typecheck.checked")

# No deadline: a first example compiles. Derandomized: a red run is red again; HYPOTHESIS_PROFILE=default searches anew.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

REAL_DATA = "MODALITY_FORCING_REAL_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image and depth samples; the test is skipped where none is named."""
    if not (named := os.environ.get(REAL_DATA)):
        pytest.skip(f"{REAL_DATA} names no folder of real samples")
    folder = Path(named)
    if not folder.is_dir():
        # A wrong name must not pass as "nothing to test".
        pytest.fail(f"{REAL_DATA}={named} is not a folder")
    return folder


@pytest.fixture
def mforce(capfd) -> Callable[..., Done]:
    """Runs the command line in this process and tells how it ended."""
    from modality_forcing import cli
    from tests.runs import Done

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse's way
            assert isinstance(left.code, int)
            code = left.code
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def t2i_run(tmp_path_factory) -> Path:
    """The workdir of a text-to-image run with one checkpoint. Only to be read."""
    from tests import runs, tiny

    return runs.save(tmp_path_factory.mktemp("t2i") / "run", tiny.t2i())


@pytest.fixture(scope="session")
def forcing_run(tmp_path_factory) -> Path:
    """The workdir of a run with depth with one checkpoint. Only to be read."""
    from tests import runs, tiny

    return runs.save(tmp_path_factory.mktemp("forcing") / "run", tiny.forcing())


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory) -> tuple[Path, Done, Done]:
    """The workdir of a tiny demo that was killed while it trained and run again, and what the two runs said. Only to be read."""
    from tests import runs

    workdir = tmp_path_factory.mktemp("demo") / "run"
    killed = runs.killed(
        "demo", "--workdir", workdir, *runs.TINY_DEMO, when=(workdir / "forcing/config.json").exists
    )
    return workdir, killed, runs.process("demo", "--workdir", workdir, *runs.TINY_DEMO)
