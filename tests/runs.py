"""Runs commands as a user does, and writes the checkpoints that they start from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modality_forcing.config import Config
from modality_forcing.train.saving import Checkpoints
from modality_forcing.train.state import Params, TrainState, init_state
from modality_forcing.train.workdir import write_config
from tests import tiny

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
# A network that compiles quickly, for the configs of the repository.
SMALL = [
    f"--config.model.{k}={v}"
    for k, v in {
        "width": 32,
        "mlp_dim": 48,
        "num_layers": 1,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 16,
    }.items()
]
TINY_DEMO = ["--t2i-steps", "4", "--forcing-steps", "4", "--examples", "8"]


@dataclass(frozen=True)
class Done:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]  # `mforce` of conftest.py


def environment() -> dict[str, str]:
    """Variables for a process that finds this tree and runs on the CPU."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def command(*arguments: object) -> list[str]:
    """The real command line, without needing the installed script."""
    return [sys.executable, "-m", "modality_forcing.cli", *map(str, arguments)]


def process(*arguments: object) -> Done:
    """Runs mforce in a new process."""
    done = subprocess.run(command(*arguments), env=environment(), capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def attempt(mforce: Command, sample_dir: Path, message: str, *arguments: object) -> None:
    """Checks that a command is refused and changes no file."""
    before = contents(sample_dir)
    refused(mforce(*arguments), message)
    assert contents(sample_dir) == before


def killed(*arguments: object, when: Callable[[], bool]) -> Done:
    """Starts mforce in a process and kills it as soon as `when()` is true, as a crash would."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        running = subprocess.Popen(command(*arguments), env=environment(), stdout=out, stderr=err)
        while not when() and running.poll() is None:
            time.sleep(0.02)
        running.kill()
        code = running.wait()
        out.seek(0), err.seek(0)
        return Done(code, out.read(), err.read())


def save(
    workdir: Path, config: Config, params: Params | None = None, ema: Params | None = None
) -> Path:
    """Makes a workdir with one checkpoint, by default with random weights, none of them zero."""
    write_config(workdir, config)
    state: TrainState = init_state(config, tiny.network(config)[1] if params is None else params)
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(
        state if ema is None else state._replace(ema=ema),
        config,
        {"data_state": {"batches": 0}, "elapsed_s": 0.0},
    )
    checkpoints.close()
    return workdir


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns everything below a folder by path: bytes of files, None for folders."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


def refused(done: Done, message: str) -> None:
    """Checks that a command failed with exit code 2 and one line that matches `message`."""
    assert "Traceback" not in done.err, done.err
    assert done.code == 2, (done.code, done.err)
    assert done.err.count("\n") == 1 and done.err.endswith("\n"), done.err
    assert done.err.startswith("mforce"), done.err
    assert re.search(message, done.err), f"{message!r} is not in {done.err!r}"
