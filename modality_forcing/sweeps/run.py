"""A sweep's work: every run trained once, every cell scored, a row for each; stopped anywhere, it
goes on to the same rows.

Of a sweep's folder:

    runs/<run>/           workdirs of train.loop, each made once for all the cells that it leads to
    cells/<cell>.json     the row of a finished cell: a function of config, code and device, to the bit
    timing/<cell>.json    what a clock said, which no two runs have in common: kept apart, so that rows can be compared
    failed/<cell>.log     why a cell could not be finished; the next start tries again
    locks/                who works on what, held by the kernel as long as that process lives
    compiled/<host>/      programs, so that no restart compiles them again; may be deleted
    columns.json          which column is which variable of a law, for `mforce fit --table=FOLDER`
    rows.jsonl, rows.csv  all rows there are, in the sweep's order; .csv is without configs, and with seconds

Cells and runs are locked by flock, which holds between the processes of one machine, and on a
network disk that has it. Where it does not reach, as in a bucket that several machines mount, give
each of them its --part: parts share no run.
"""

from __future__ import annotations

import csv
import fcntl
import gc
import hashlib
import io
import json
import math
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

import modality_forcing
from modality_forcing import distributed
from modality_forcing.atomic_io import check_folder, write_file
from modality_forcing.config import Config, to_dict
from modality_forcing.data.in_memory import InMemory
from modality_forcing.data.records import RecordSource
from modality_forcing.errors import UserError
from modality_forcing.sweeps.price import LAW_COLUMNS, SCORE_COLUMNS, cell_columns
from modality_forcing.sweeps.score import Scorer
from modality_forcing.sweeps.spec import Cell, Run, Sweep
from modality_forcing.train import inputs
from modality_forcing.train.loop import train
from modality_forcing.train.metrics import read_metrics
from modality_forcing.train.workdir import check_resumable
from modality_forcing.tree import flatten

# What the numbers of a row come from. A row's version is a digest of these and of nothing else, so
# that a new figure or command does not make one study look like two.
VERSIONED_PATHS = (
    "config.py",
    "data",
    "datasets",
    "diffusion",
    "encoders",
    "evaluation",
    "generator.py",
    "modalities",
    "models",
    "storage",
    "synthetic",
    "train",
)
Log = Callable[[str], None]


class Failure(NamedTuple):
    """Why a cell could not be finished."""

    line: str  # the last of its log
    mistake: (
        bool  # one that a second try would only repeat, such as a loss that is not finite any more
    )


class SweepDir:
    """Where everything of a sweep is; reading it changes nothing. Raises UserError if it cannot be
    a folder.
    """

    def __init__(self, sweep: Sweep, workdir: Path):
        check_folder(workdir, "--workdir")
        self.sweep, self.path = (
            sweep,
            workdir.absolute(),
        )  # absolute: train.init_from must mean the same from everywhere
        self.runs = self.path / "runs"

    def run_dir(self, run: Run) -> Path:
        """The workdir of a run."""
        return self.runs / run.folder

    def failure_log(self, cell: Cell) -> Path:
        """The log of a cell that failed."""
        return self.path / "failed" / f"{cell.name}.log"

    def row(self, cell: Cell) -> dict[str, Any] | None:
        """The row of a cell, None where it is not finished; UserError if it is that of another
        sweep.
        """
        return self._read("cells", cell)

    def timing(self, cell: Cell) -> dict[str, Any]:
        """What a cell's clock said."""
        return self._read("timing", cell) or {}

    def _read(self, kind: str, cell: Cell) -> dict[str, Any] | None:
        path = self.path / kind / f"{cell.name}.json"
        if not path.exists():
            return None
        try:
            row = dict(json.loads(path.read_text()))
        except (OSError, TypeError, ValueError) as error:
            raise UserError(
                "is not a row", where=path, hint="delete it, and the cell is scored again"
            ) from error
        if row.get("digest") != cell.digest:
            hint = "choose another --workdir, or delete it"
            raise UserError("is a row of a cell with another config", where=path, hint=hint)
        return row

    def steps_done(self, run: Run) -> int:
        """How many steps of a run are done, as far as it has told."""
        if self.is_trained(run):
            return run.config.train.steps
        told = [int(row["step"]) for row in read_metrics(self.run_dir(run))]
        return min(told[-1] if told else 0, run.config.train.steps)

    def is_trained(self, run: Run) -> bool:
        """Whether a run has its last checkpoint."""
        return self._has(run, run.config.train.steps)

    def _has(self, run: Run, step: int) -> bool:
        return (self.run_dir(run) / "checkpoints" / str(step) / "meta").is_dir()

    def config(self, run: Run) -> Config:
        """Returns what a run is trained by here: what it starts from, where it branches off, and
        where others do.
        """
        config = run.config_in(self.runs)
        # A trunk of before it had branches lacks the checkpoint: from step 0 the weights are the
        # same.
        branch = (
            str(self.run_dir(run.branch_from))
            if run.branch_from and self._has(run.branch_from, run.branch_step)
            else ""
        )
        return replace(
            config,
            train=replace(
                config.train, branch_from=branch, keep_at_steps=self.sweep.branch_points(run)
            ),
        )

    def lock_owner(self, name: str) -> str:
        """The process that works on a cell or a run, "" where none does that can be seen from here."""
        path = self.path / "locks" / name
        if not path.exists():
            return ""
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return file.read().strip() or "another process"
        return ""

    @contextmanager
    def try_lock(self, name: str, wait: bool = False) -> Iterator[bool]:
        """Holds a lock, and says whether it could be had; a process that is killed lets go of it."""
        if not distributed.is_primary():
            yield True
            return
        path = self.path / "locks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError:
                yield False
                return
            file.truncate(0)
            print(f"process {os.getpid()} on {socket.gethostname()}", file=file, flush=True)
            yield True

    def write_rows(self) -> None:
        """Puts rows.jsonl and rows.csv together from the cells."""
        with self.try_lock("rows", wait=True):
            rows = [
                (row, self.timing(cell)) for cell in self.sweep.cells if (row := self.row(cell))
            ]
            write_file(self.path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row, _ in rows))
            score = [name for name in SCORE_COLUMNS if any(name in row for row, _ in rows)]
            columns = LAW_COLUMNS | ({"loss": score[0]} if score else {})
            write_file(self.path / "columns.json", json.dumps(columns) + "\n")
            cells = [
                flatten({k: v for k, v in {**row, **timing}.items() if k != "config"}, ".")
                for row, timing in rows
            ]
            names = list(dict.fromkeys(name for row in cells for name in row))
            text = io.StringIO()
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(cells)
            write_file(self.path / "rows.csv", text.getvalue())


def work(folder: SweepDir, cells: Iterable[Cell], log: Log) -> dict[str, Failure]:
    """Does every cell that is not done and that no other process works on; returns what went
    wrong, by cell.

    In a run of several processes all call this, and the first writes. A mistake in a cell does not
    keep the others from being done; Ctrl-C does.
    """
    failed: dict[str, Failure] = {}
    broken: dict[
        str, Exception
    ] = {}  # runs that failed, which need not be tried again for the next cell
    mine = _Work(folder, log)
    others = [
        row
        for cell in folder.sweep.cells
        if (row := folder.row(cell)) and row["version"] != mine.version
    ]
    if others:
        log(
            f"beware: {len(others)} rows are of another version of the code, and do not go into one fit with new ones"
        )
    with _compilation_cache(folder.path / "compiled" / socket.gethostname()):
        for cell in cells:
            with folder.try_lock(cell.name) as free:
                if not _broadcast(free):
                    log(f"{cell.name}: {folder.lock_owner(cell.name)} works on it")
                    continue
                if _broadcast(folder.row(cell) is not None):
                    continue
                try:
                    if not mine.cell(cell, broken):
                        continue
                except (
                    Exception
                ) as error:  # whatever it is, it is this cell's: the others are worth doing
                    line = error_summary(error)
                    failed[cell.name] = Failure(
                        line, isinstance(error, UserError | FloatingPointError)
                    )
                    _on_primary(
                        lambda c=cell: write_file(folder.failure_log(c), traceback.format_exc())
                    )
                    log(f"{cell.name}: failed: {line}")
                    error.with_traceback(None)  # it is kept, and the run's state would be with it
                else:
                    _on_primary(lambda c=cell: folder.failure_log(c).unlink(missing_ok=True))
            _on_primary(folder.write_rows)
            jax.clear_caches()  # each width is another program; hundreds would fill the memory
            gc.collect()
    return failed


class _Work:
    """The cells of one process, and what they have in common: records in memory, and the held-out
    ones.
    """

    def __init__(self, folder: SweepDir, log: Log):
        self.folder, self.log, self.version = folder, log, version()
        self._scorer = Scorer(folder.path)
        self._records: dict[str, RecordSource] = {}

    def cell(self, cell: Cell, broken: dict[str, Exception]) -> bool:
        """Trains and scores a cell and writes its row; False where another process works on one of
        its runs.
        """
        for run in cell.run.dependencies():
            if run.digest in broken:
                raise broken[run.digest]
            with self.folder.try_lock(run.folder) as mine:
                if not _broadcast(mine):
                    self.log(
                        f"{cell.name}: waits for {run.folder}, on which {self.folder.lock_owner(run.folder)} works"
                    )
                    return False
                try:
                    self._train(run)
                except Exception as error:
                    broken[run.digest] = error
                    raise
        self.log(f"{cell.name}: scoring")
        started = time.monotonic()
        row = self._row(cell)
        seconds = {
            f"seconds_{run.phase}": read_metrics(self.folder.run_dir(run))[-1].get("elapsed_s")
            for run in cell.runs()
        }
        seconds |= {"seconds_evaluation": round(time.monotonic() - started, 2)}
        clock = {
            "cell": cell.name,
            "digest": cell.digest,
            "seconds": sum(s or 0.0 for s in seconds.values()),
            **seconds,
        }
        # The row last: where it is, the cell is done.
        for kind, told in (("timing", clock), ("cells", row)):
            _on_primary(
                lambda k=kind, t=told: write_file(
                    self.folder.path / k / f"{cell.name}.json", json.dumps(t, indent=1) + "\n"
                )
            )
        return True

    def _train(self, run: Run) -> None:
        workdir, config = self.folder.run_dir(run), self.folder.config(run)
        if _broadcast(self.folder.is_trained(run)):
            return
        done = self.folder.steps_done(run)
        self.log(
            f"{run.folder}: {f'goes on from about step {done}' if done else 'starts'}, {run.config.train.steps} steps"
        )
        # Where this folder was, and whether it branches: the digest says that the run is the same.
        if check_resumable(workdir, config, ignore=("train.init_from", "train.branch_from")):
            _on_primary(
                lambda: write_file(workdir / "config.json", json.dumps(to_dict(config), indent=1))
            )
        versions = [*dict.fromkeys([*self._versions(run), self.version])]
        _on_primary(lambda: write_file(workdir / "versions.json", json.dumps(versions)))
        train(config, workdir, records=self._in_memory(config))

    def _versions(self, run: Run) -> list[str]:
        """The code that trained a run: of each time that it was started."""
        path = self.folder.run_dir(run) / "versions.json"
        return json.loads(path.read_text()) if path.exists() else []

    def _in_memory(self, config: Config) -> RecordSource | None:
        """The records of procedural scenes, made once for all runs; None for others, and where
        processes load them.
        """
        if config.data.source != "scenes" or config.data.workers:
            return None
        key = json.dumps([config.seed, config.data.num_scenes, config.data.resolution])
        return self._records.setdefault(key, InMemory(inputs.open_source(config)))

    def _row(self, cell: Cell) -> dict[str, Any]:
        versions = sorted(
            {self.version, *(v for run in cell.run.dependencies() for v in self._versions(run))}
        )
        score = self._scorer(cell, {run.phase: self.folder.run_dir(run) for run in cell.runs()})
        return {
            "cell": cell.name,
            "sweep": self.folder.sweep.name,
            "digest": cell.digest,
            "version": ", ".join(versions),
            "protocol": score.protocol,
            "seeds": score.seeds,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "axes": dict(cell.point),
            **cell_columns(cell),
            **{
                name: value if math.isfinite(value) else None
                for name, value in score.metrics.items()
            },
            "config": {run.phase: to_dict(run.config_in(Path("runs"))) for run in cell.runs()},
        }


@cache
def version() -> str:
    """Returns the package's version with a digest of the code that rows depend on, as it is on
    disk.
    """
    digest, package = hashlib.sha256(), Path(modality_forcing.__file__).parent
    for part in VERSIONED_PATHS:
        path = package / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{modality_forcing.__version__}+{digest.hexdigest()[:10]}"


def error_summary(error: BaseException) -> str:
    """Returns the last line of an error's traceback, in one line even where its message has
    several.
    """
    told = " ".join(str(error).split()) or type(error).__name__
    return (
        told
        if isinstance(error, UserError | FloatingPointError)
        else f"{type(error).__name__}: {told}"
    )


def _on_primary(write: Callable[[], Any]) -> None:
    if distributed.is_primary():
        write()


def _broadcast(value: bool) -> bool:
    """Returns what the first process says: all must do the same, and only that one holds locks and
    writes.
    """
    if distributed.process_count() == 1:
        return value
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


@contextmanager
def _compilation_cache(folder: Path) -> Iterator[None]:
    """Keeps compiled programs on disk, unless the user has named a place: seeds and pretraining
    sizes share many.

    A place for each host, since a program for one processor may not run on another.
    """
    changes = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.5,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in changes}
    if before["jax_compilation_cache_dir"]:
        yield
        return
    for name, value in changes.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
