"""Runs a sweep: every run is trained once, every cell is scored and has a row.

An interrupted sweep resumes and produces identical rows. `sweeps.workdir` describes the folder.
"""

from __future__ import annotations

import gc
import json
import math
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from modality_forcing import compilation_cache, distributed, signals
from modality_forcing.config import Config, to_dict
from modality_forcing.data.in_memory import InMemory
from modality_forcing.data.records import RecordSource
from modality_forcing.errors import UserError, WorkerDied
from modality_forcing.evaluation.while_training import make_evaluate
from modality_forcing.paths import exists, remove, write_file
from modality_forcing.sweeps.price import cell_columns
from modality_forcing.sweeps.score import Scorer
from modality_forcing.sweeps.spec import Cell, Run
from modality_forcing.sweeps.workdir import SweepDir, version
from modality_forcing.text_io import read_json, with_checksum
from modality_forcing.train import inputs
from modality_forcing.train.loop import train
from modality_forcing.train.metrics import last_value
from modality_forcing.train.workdir import check_resumable, resolve_paths
from modality_forcing.tree import JsonObject

Log = Callable[[str], None]


# Neighbors share what is compiled for each operation, and a quarter of their processor time with
# it. Every cell has programs of its own, and hundreds would fill the memory.
_CELLS_IN_CACHES = 4


class Failure(NamedTuple):
    """Why a cell failed."""

    line: str  # the last of its log
    mistake: bool  # whether a second try would fail again, such as after a loss of NaN


def work(folder: SweepDir, cells: Sequence[Cell], log: Log) -> dict[str, Failure]:
    """Trains and scores the cells that are neither done nor in progress elsewhere.

    In a run of several processes all of them call this, and the first one writes. A failed cell
    does not stop the others; Ctrl-C does.

    Returns: the failures, by name of the cell. Raises UserError, before any is trained, for metrics
    of images whose networks are not there.
    """
    distributed.devices()  # once, not as a failure of every cell
    failed: dict[str, Failure] = {}
    worker = _Worker(folder, log)
    worked = 0
    outdated = sum(row["version"] != worker.version for _, row in folder.rows())
    if outdated:
        log(f"warning: {outdated} rows are of another version of the code; fits do not pool them")
    if others := folder.other_cells():
        what = f"{len(others)} finished cells are of another sweep, such as {others[0]}"
        log(f"warning: {what}; rows.jsonl has those of this one")
    worker.scorer.check([cell for cell in cells if folder.row(cell) is None])
    with compilation_cache.enabled(beside=folder.path):
        for cell in cells:
            with folder.try_lock(cell.name) as free:
                if not distributed.from_first(free):
                    log(f"{cell.name}: skipped, {folder.lock_owner(cell.name)} works on it")
                    continue
                if distributed.from_first(folder.row(cell) is not None):
                    continue
                try:
                    finished = worker.run_cell(cell)
                except Exception as error:  # any error: the other cells are independent
                    failed[cell.name] = worker.record_failure(cell, error)
                    # `worker.broken` keeps the error; its traceback would keep the run's state.
                    error.with_traceback(None)
                else:
                    if not finished:
                        continue
                    if distributed.is_primary():
                        remove(folder.failure_log(cell))
            if distributed.is_primary():
                folder.write_rows()
            worked += 1
            if worked % _CELLS_IN_CACHES == 0:
                jax.clear_caches()
                gc.collect()
    return failed


class _Worker:
    """Runs the cells of one process, which share records in memory and held-out records."""

    def __init__(self, folder: SweepDir, log: Log):
        self.folder, self.log, self.version = folder, log, version()
        self.broken: dict[str, Exception] = {}  # failed runs by digest, not tried twice
        self.scorer = Scorer(folder.path)
        self._records: dict[RecordSource, InMemory] = {}

    def run_cell(self, cell: Cell) -> bool:
        """Trains and scores a cell and writes its row; False if one of its runs is locked."""
        folder = self.folder
        for run in cell.run.dependencies():
            if run.digest in self.broken:
                raise self.broken[run.digest]
            with folder.try_lock(run.folder) as free:
                if not distributed.from_first(free):
                    owner = folder.lock_owner(run.folder)
                    self.log(f"{cell.name}: waits for {run.folder}, in progress by {owner}")
                    return False
                try:
                    self._train(run)
                except Exception as error:
                    self.broken[run.digest] = error
                    raise
        self.log(f"{cell.name}: scoring")
        start = time.monotonic()
        row = self._row(cell)
        seconds = {
            f"seconds_{run.phase}": last_value(folder.run_dir(run), "elapsed_s")
            for run in cell.runs()
        }
        seconds["seconds_evaluation"] = round(time.monotonic() - start, 2)
        total = sum(s or 0.0 for s in seconds.values())
        timing = {"cell": cell.name, "digest": cell.digest, "seconds": total, **seconds}
        if distributed.is_primary():
            # The row comes last: a cell with a row is done.
            for kind, content in (("timing", timing), ("cells", row)):
                text = json.dumps(with_checksum(content), indent=1) + "\n"
                write_file(folder.path / kind / f"{cell.name}.json", text)
        return True

    def record_failure(self, cell: Cell, error: Exception) -> Failure:
        """Logs an error that is being handled, and writes its traceback to the cell's log."""
        line = error_summary(error)
        if distributed.is_primary():
            write_file(self.folder.failure_log(cell), traceback.format_exc())
        self.log(f"{cell.name}: failed: {line}")
        mistake = isinstance(error, UserError | FloatingPointError)
        return Failure(line, mistake and not isinstance(error, WorkerDied))

    def _train(self, run: Run) -> None:
        workdir, config = self.folder.run_dir(run), self.folder.config(run)
        if distributed.from_first(self.folder.is_trained(run)):
            return
        done = self.folder.steps_done(run)
        action = f"resumes from about step {done}" if done else "starts"
        self.log(f"{run.folder}: {action}, {run.config.train.steps} steps")
        # These two depend on the folder's path and history; the digest identifies the run.
        resumes = check_resumable(workdir, config, ignore=("train.init_from", "train.branch_from"))
        versions = [*dict.fromkeys([*self._versions(run), self.version])]
        if distributed.is_primary():
            if resumes:
                text = json.dumps(to_dict(resolve_paths(config)), indent=1)
                write_file(workdir / "config.json", text)
            write_file(workdir / "versions.json", json.dumps(versions))
        records = self._in_memory(config)
        try:
            train(config, workdir, records=records, make_evaluate=make_evaluate)
        except signals.StopRequest as stop:
            if stop.resumes:
                raise
            message = f"stopped by {signals.name(stop.number)} after {run.folder}"
            raise signals.StopRequest(stop.number, message, agreed=stop.agreed) from None

    def _versions(self, run: Run) -> list[str]:
        """The versions of the code that trained a run, one for each start."""
        path = self.folder.run_dir(run) / "versions.json"
        versions = read_json(path, hint="delete it") if exists(path) else []
        if not isinstance(versions, list) or not all(isinstance(v, str) for v in versions):
            raise UserError("is not a list of versions", where=path, hint="delete it")
        return versions

    def _in_memory(self, config: Config) -> InMemory | None:
        """The records of procedural scenes, rendered once for all runs.

        None for other sources and where data workers load the records.
        """
        if config.data.source != "scenes" or config.data.workers:
            return None
        source = inputs.open_source(config)
        records = self._records.setdefault(source, InMemory(source))
        records.fill_for(config.train.steps * config.train.batch)
        return records

    def _row(self, cell: Cell) -> JsonObject:
        used = {v for run in cell.run.dependencies() for v in self._versions(run)}
        score = self.scorer(cell, {run.phase: self.folder.run_dir(run) for run in cell.runs()})
        # JSON has no NaN.
        metrics = {k: v if math.isfinite(v) else None for k, v in score.metrics.items()}
        return {
            "cell": cell.name,
            "sweep": self.folder.sweep.name,
            "digest": cell.digest,
            "version": ", ".join(sorted({self.version, *used})),
            "protocol": score.protocol,
            "seeds": score.seeds,
            "device": jax.devices()[0].device_kind,
            "devices": jax.device_count(),
            "axes": dict(cell.point),
            **cell_columns(cell),
            **metrics,
            "config": {run.phase: to_dict(run.config_in(Path("runs"))) for run in cell.runs()},
        }


def error_summary(error: BaseException) -> str:
    """Returns an error in one line, with its type if it is an unexpected one."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UserError | FloatingPointError):
        return message
    return f"{type(error).__name__}: {message}"
