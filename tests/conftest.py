"""jax on the CPU, run-time checks of annotations, and fixtures of all tests."""

from __future__ import annotations

import gc
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import jaxtyping
import pytest
from hypothesis import settings

import tests.typecheck  # noqa: F401  # the hook names it
from tests.bucket import _emulator, bucket, folder, gs_path  # noqa: F401  # fixtures

if TYPE_CHECKING:
    from tests.runs import Done

# A shell starts commands in the background with Ctrl-C ignored, and nohup with SIGHUP ignored. What
# is ignored stays so in the package, and tests send both.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Before anything imports jax. JAX_PLATFORMS selects another platform.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_jax = tuple(map(int, version("jax").split(".")[:2]))
# The programs of tests are small: compiling them well takes longer than running them. Without the
# emitters of fused loops, which XLA cannot switch off from jax 0.11 on, a train step on eight
# devices compiles in 3.5 s of CPU time instead of 7.9.
# In one part each, instead of up to 32, they compile in 9/10 of that.
_fast = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
_fast += " --xla_cpu_use_fusion_emitters=false" if _jax < (0, 11) else ""
os.environ.setdefault("XLA_FLAGS", _fast)

# Tests and the commands they start share what they compile, also between workers of pytest-xdist,
# which inherit the folder. Older versions of XLA log each cache hit to stderr, which tests inspect.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ and _jax >= (0, 10):
    _cache = tempfile.TemporaryDirectory(prefix="mforce-compiled-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

if _jax < (0, 10):
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"

# Without a stack of source lines for every operation, programs are lowered in 9/10 of the time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")

# Tracing makes many objects that live on; searching them for garbage takes a tenth of the time.
gc.set_threshold(50_000, 20, 50)

# Every annotation of the package is checked at run time, shapes included.
jaxtyping.install_import_hook("modality_forcing", "tests.typecheck.checked")

# No deadline: the first example compiles. Derandomized: failures are reproducible.
# HYPOTHESIS_PROFILE=fuzz samples other examples, as tests/fuzz.py does.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("fuzz", deadline=None, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

MAX_WORKERS = 8  # of `-n auto`; each holds jax and its own fixtures
# Folders whose tests take longest. They start first, so that no worker ends with one of them.
SLOW_FIRST = ("e2e", "sharded", "parity")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Uses every core, hyperthreads included, within reason."""
    return min(os.cpu_count() or 1, MAX_WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the slow files first. `--dist=loadfile` sends a file's tests to one worker."""

    def rank(item: pytest.Item) -> int:
        top = item.path.relative_to(Path(__file__).parent).parts[0]
        return SLOW_FIRST.index(top) if top in SLOW_FIRST else len(SLOW_FIRST)

    items.sort(key=rank)


REAL_DATA = "MODALITY_FORCING_REAL_DATA"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image and depth samples; the test is skipped if none is named."""
    if not (named := os.environ.get(REAL_DATA)):
        pytest.skip(f"{REAL_DATA} names no folder of real samples")
    samples = Path(named)
    if not samples.is_dir():
        # A misspelled folder must fail, not skip.
        pytest.fail(f"{REAL_DATA}={named} is not a folder")
    return samples


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Turns the annotation checks off, for arguments that only the function itself refuses."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def mforce(capfd) -> Callable[..., Done]:
    """Runs the command line in this process and returns its exit code and output."""
    from modality_forcing import cli
    from tests.runs import Done

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        try:
            code = cli.main([str(argument) for argument in arguments])
        except SystemExit as exit_:  # raised by argparse
            assert isinstance(exit_.code, int)
            code = exit_.code
        return Done(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def t2i_run(tmp_path_factory) -> Path:
    """The workdir of a text-to-image run with one checkpoint; read only."""
    from tests import runs, tiny

    return runs.save(tmp_path_factory.mktemp("t2i") / "run", tiny.t2i())


@pytest.fixture(scope="session")
def forcing_run(tmp_path_factory) -> Path:
    """The workdir of a run with depth with one checkpoint; read only."""
    from tests import runs, tiny

    return runs.save(tmp_path_factory.mktemp("forcing") / "run", tiny.forcing())


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory) -> tuple[Path, Done, Done]:
    """The read-only workdir of a tiny demo killed in training and resumed, and both outputs."""
    from tests import runs

    workdir = tmp_path_factory.mktemp("demo") / "run"
    killed = runs.killed(
        "demo", "--workdir", workdir, *runs.TINY_DEMO, when=(workdir / "forcing/config.json").exists
    )
    return workdir, killed, runs.process("demo", "--workdir", workdir, *runs.TINY_DEMO)
