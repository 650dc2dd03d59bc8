"""The folder of a sweep: its layout, the rows of its cells, locks, and the version of the code.

    runs/<run>/           workdirs of train.loop, shared by the cells that need the run
    cells/<cell>.json     the row of a finished cell, determined by config, code and device
    timing/<cell>.json    seconds, kept apart so that rows of two machines can be compared
    failed/<cell>.log     traceback of a failed cell; the next start tries the cell again
    locks/                of the cells and runs in progress
    compiled/<machine>/   compiled programs, reused after a restart; may be deleted
    columns.json          columns of a law's variables, for `mforce fit --table=FOLDER`
    rows.jsonl, rows.csv  all rows in the sweep's order; the CSV has seconds and no configs

Locks work between processes of one machine and on some network disks (`locks`). Elsewhere, as in a
bucket that several machines mount, start each machine with its own --shard: shards have no run in
common.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path

import modality_forcing
from modality_forcing import distributed, locks
from modality_forcing.config import Config
from modality_forcing.errors import UserError
from modality_forcing.paths import check_folder, exists, glob, is_dir, write_file
from modality_forcing.sweeps.price import LAW_COLUMNS, SCORE_COLUMNS
from modality_forcing.sweeps.spec import Cell, Run, Sweep
from modality_forcing.text_io import parse_number, read_verified
from modality_forcing.train.checkpoint import is_complete
from modality_forcing.train.metrics import read_metrics
from modality_forcing.tree import JsonObject, flatten

# The code that a row's numbers depend on. The version of a row is a digest of these files alone,
# so that a new figure or command does not split a study in two.
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


class SweepDir:
    """Paths and state of a sweep's folder. Raises UserError if the path cannot be a folder.

    Only `try_lock` and `write_rows` write.
    """

    def __init__(self, sweep: Sweep, workdir: Path):
        check_folder(workdir, "--workdir", utf8=True)
        self.sweep = sweep
        # Absolute, because train.init_from must not depend on the current directory.
        self.path = workdir.absolute()
        self.runs = self.path / "runs"

    def run_dir(self, run: Run) -> Path:
        """The workdir of a run."""
        return self.runs / run.folder

    def failure_log(self, cell: Cell) -> Path:
        """The log of a failed cell."""
        return self.path / "failed" / f"{cell.name}.log"

    def row(self, cell: Cell) -> JsonObject | None:
        """The row of a cell, None if it is not finished.

        Raises UserError if the file is damaged or belongs to another sweep.
        """
        return self._read("cells", cell)

    def timing(self, cell: Cell) -> JsonObject:
        """The seconds of a finished cell, by phase."""
        return self._read("timing", cell) or {}

    def _read(self, kind: str, cell: Cell) -> JsonObject | None:
        path = self.path / kind / f"{cell.name}.json"
        if not exists(path):
            return None
        hint = "delete it to score the cell again"
        row = read_verified(path, what="is not a row", hint=hint, finite=False)
        if row.get("digest") != cell.digest:
            hint = "choose another --workdir, or delete it"
            raise UserError("is a row of a cell with another config", where=path, hint=hint)
        if kind == "cells" and (wrong := _wrong_column(row)):
            hint = "delete it to score the cell again"
            raise UserError(f"is not a row ({wrong})", where=path, hint=hint)
        return row

    def rows(self) -> list[tuple[Cell, JsonObject]]:
        """The finished cells with their rows, in the sweep's order."""
        return [(cell, row) for cell in self.sweep.cells if (row := self.row(cell))]

    def other_cells(self) -> list[str]:
        """The names of finished cells that are not of this sweep, and so not among its rows."""
        ours = {cell.name for cell in self.sweep.cells}
        return [p.stem for p in glob(self.path / "cells", "*.json") if p.stem not in ours]

    def steps_done(self, run: Run) -> int:
        """The number of finished steps of a run, according to its metrics."""
        if self.is_trained(run):
            return run.config.train.steps
        steps = [int(row["step"]) for row in read_metrics(self.run_dir(run))]
        return min(steps[-1] if steps else 0, run.config.train.steps)

    def is_trained(self, run: Run) -> bool:
        """Whether a run has its last checkpoint."""
        return self._has_checkpoint(run, run.config.train.steps)

    def _has_checkpoint(self, run: Run, step: int) -> bool:
        return is_complete(self.run_dir(run) / "checkpoints" / str(step))

    def config(self, run: Run) -> Config:
        """The config that trains a run in this folder, with the paths and steps of its branches."""
        config, trunk = run.config_in(self.runs), run.branch_from
        # A trunk trained before the branch was added lacks the checkpoint. Training from step 0
        # gives the same weights.
        branches = trunk is not None and self._has_checkpoint(trunk, run.branch_step)
        branch_from = str(self.run_dir(trunk)) if trunk and branches else ""
        keep = self.sweep.branch_points(run)
        loop = replace(config.train, branch_from=branch_from, keep_at_steps=keep)
        return replace(config, train=loop)

    def lock_owner(self, name: str) -> str:
        """The process that holds the lock of a cell or run; "" if none is visible from here."""
        return locks.owner(self.path / "locks" / name)

    def try_lock(self, name: str, wait: bool = False) -> AbstractContextManager[bool]:
        """Tries to hold a lock; the context is whether it succeeded (`locks.try_hold`)."""
        if not distributed.is_primary():
            return nullcontext(True)
        return locks.try_hold(self.path / "locks" / name, wait)

    def write_rows(self) -> None:
        """Writes rows.jsonl, rows.csv and columns.json from the finished cells."""
        with self.try_lock("rows", wait=True):
            cells = self.rows()
            lines = "".join(json.dumps(row) + "\n" for _, row in cells)
            write_file(self.path / "rows.jsonl", lines)
            scores = [name for name in SCORE_COLUMNS if any(name in row for _, row in cells)]
            columns = LAW_COLUMNS | ({"loss": scores[0]} if scores else {})
            write_file(self.path / "columns.json", json.dumps(columns) + "\n")
            records = []
            for cell, row in cells:
                record = row | self.timing(cell)
                record.pop("config", None)
                records.append(flatten(record, "."))
            names = list(dict.fromkeys(name for record in records for name in record))
            text = io.StringIO()
            writer = csv.DictWriter(text, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)
            write_file(self.path / "rows.csv", text.getvalue())


def _wrong_column(row: Mapping[str, object]) -> str:
    """Returns which of the columns that this package reads is no value of it, "" if none is."""
    if not isinstance(row.get("version"), str):
        return "version is not a text"
    if not isinstance(row.get("axes"), dict):
        return "axes is not an object"
    for name in (*LAW_COLUMNS.values(), *SCORE_COLUMNS, "seed"):
        value = row.get(name)
        if value is None and name in SCORE_COLUMNS:
            continue
        try:
            number = parse_number(value)
        except ValueError as error:
            return f"{name}: {error}"
        if not 0 <= number < math.inf:
            return f"{name} is {number:g}"
    return ""


@cache
def version() -> str:
    """Returns the package's version with a digest of the files of VERSIONED_PATHS on disk."""
    digest, package = hashlib.sha256(), Path(modality_forcing.__file__).parent
    for part in VERSIONED_PATHS:
        path = package / part
        for file in sorted(path.rglob("*.py")) if is_dir(path) else [path]:
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    return f"{modality_forcing.__version__}+{digest.hexdigest()[:10]}"
