"""What faults are injected with: tiny runs of the real command, and how they ended."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = {
    "model.width": 32,
    "model.mlp_dim": 48,
    "model.num_layers": 1,
    "model.heads": 2,
    "model.kv_heads": 1,
    "model.head_dim": 16,
    "train.batch": 4,
    "train.log_every": 1,
    "train.save_every": 25,
    "data.num_scenes": 32,
    "data.workers": 0,
}
VERDICTS = {True: "ok", False: "NOT OK", None: "not run"}
STOPPED = 143
_OWN_MOUNTS = "FAULTS_OWN_MOUNTS"
NAMED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True)
class Row:
    """What a fault did. ok: the run continued to the bit, or was refused as it must be.

    ok is None for a fault that could not be injected.
    """

    happens: str
    lost: str
    ok: bool | None


@dataclass
class Bench:
    """A folder for runs, and the states at which undisturbed ones end, by number of processes."""

    folder: Path
    tries: int
    steps: int
    rng: random.Random
    ends: dict[int, object] = field(default_factory=dict)
    starts_s: float = 0.0  # until the first step of a run whose programs are compiled

    def command(self, workdir: Path, **keys: object) -> list[str]:
        """The command of a run in this workdir, with more keys of the config (a__b for a.b)."""
        more = {name.replace("__", "."): value for name, value in keys.items()}
        config = {**TINY, "train.steps": self.steps, **more}
        flags = [f"--config.{key}={value}" for key, value in config.items()]
        run = ["train", "--config=demo:phase=t2i", f"--workdir={workdir}", *flags]
        return [sys.executable, "-m", "modality_forcing.cli", *run]

    def start(self, command: list[str], **variables: str) -> Running:
        """Starts a command; its output goes to a file."""
        log = tempfile.TemporaryFile("w+", dir=self.folder)  # noqa: SIM115
        cache = str(self.folder / "compiled")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [variables.pop("FIRST", ""), str(ROOT)])),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **variables,
        }
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        return Running(process, log)

    def finish(self, workdir: Path) -> str:
        """Runs to the end and returns the output."""
        run = self.start(self.command(workdir))
        code = run.wait()
        assert code == 0, run.output()
        return run.output()

    def shorten(self, output: str) -> str:
        """Returns the last line of an output, without the folder of this bench."""
        last = (output.strip().splitlines() or [""])[-1]
        return re.sub(r"^mforce \w+: ", "", last.replace(str(self.folder), "..."))

    def equal(self, workdir: Path, processes: int = 1) -> bool:
        """Whether a finished run ended in the state of the undisturbed one."""
        return last_state(workdir) == self.ends[processes]


@dataclass(frozen=True)
class Running:
    """A command that runs, in a process group of its own."""

    process: subprocess.Popen[bytes]
    log: object

    def wait(self, timeout: float = 600) -> int:
        """Returns the exit code."""
        return self.process.wait(timeout)

    def output(self) -> str:
        """What it printed so far."""
        self.log.seek(0)  # pyright: ignore[reportAttributeAccessIssue]
        return self.log.read()  # pyright: ignore[reportAttributeAccessIssue]


def last_state(workdir: Path) -> object:
    """The checksums of all arrays of the last checkpoint, and its step."""
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    meta = json.loads((workdir / "checkpoints" / str(max(steps)) / "meta/metadata").read_text())
    return {"step": meta["step"], "checksums": meta["checksums"], "data": meta["data_state"]}


def step_done(workdir: Path) -> int:
    """The last step of which there is a row."""
    try:
        rows = (workdir / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(row)["step"] for row in rows if row.endswith("}")), default=0)
    except FileNotFoundError:
        return 0


def until(condition: Callable[[], bool], run: Running, timeout: float = 300) -> None:
    """Waits until a condition holds or the run has ended."""
    end = time.monotonic() + timeout
    while not condition() and run.process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)


def own_mounts() -> None:
    """Starts this script again with mounts of its own, where that is allowed."""
    if _OWN_MOUNTS not in os.environ and os.geteuid() == 0 and shutil.which("unshare"):
        private = ["unshare", "--mount", "--propagation=private"]
        if subprocess.run([*private, "true"], stderr=subprocess.DEVNULL).returncode == 0:
            os.environ[_OWN_MOUNTS] = "yes"
            os.execvp("unshare", [*private, sys.executable, *sys.argv])


def may_mount() -> bool:
    """Returns whether `disk` can be used: only with mounts that nobody else sees."""
    return os.environ.get(_OWN_MOUNTS) == "yes"


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """Yields a folder that is a disk of this size, such as 20m, in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    """Changes the options of a `disk`, such as ro or size=20m."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fills the disk of a folder; returns the file that does."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            with suppress(OSError):
                while file.write(b"x" * size) == size:
                    pass
    return path


@contextmanager
def several(
    bench: Bench, workdir: Path, count: int = 4, variables: Mapping[str, str] | None = None
) -> Iterator[list[Running]]:
    """The processes of one run; those that are left are killed at the end."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    runs = [
        bench.start(
            bench.command(workdir),
            MFORCE_COORDINATOR=address,
            MFORCE_PROCESS_COUNT=str(count),
            MFORCE_PROCESS_ID=str(i),
            XLA_FLAGS="--xla_force_host_platform_device_count=1",
            **(variables or {}),
        )
        for i in range(count)
    ]
    try:
        yield runs
    finally:
        for run in runs:
            if run.process.poll() is None:
                run.process.kill()
