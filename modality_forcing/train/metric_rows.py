"""Rows of metrics on disk, one file that grows, and in a bucket, where no object can grow.

A run in a folder appends to `metrics.jsonl`. A run in a bucket writes `metrics/<step>.jsonl`, parts
of up to 1000 rows named by their first step, of which the last one is written again whenever rows
are flushed. Reading takes both, so that a run may be copied from one to the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from modality_forcing import paths
from modality_forcing.text_io import parse_number, parse_object, read_lines

PART_ROWS = 1000
Row = dict[str, float]


def open_rows(folder: Path, first_step: int) -> RowFile | RowParts:
    """Opens the rows of a run, without those of the steps after `first_step`, which run again."""
    return (RowParts if paths.is_address(folder) else RowFile)(folder, first_step)


def read_metrics(folder: Path) -> list[Row]:
    """Returns the rows written so far, without a last line that a kill cut short.

    Raises UserError for any other line that is damaged: rows after it must not be lost.
    """
    return [row for path in _files(folder) for row in _read(path)]


class RowFile:
    """The rows of a run in a folder, each in the file as soon as it is written."""

    def __init__(self, folder: Path, first_step: int):
        paths.make_folder(folder)
        self._path = folder / "metrics.jsonl"
        kept = _keep(read_metrics(folder), first_step)
        paths.write_file(self._path, _format(kept))
        for part in _parts(folder):  # of a run copied from a bucket
            paths.remove(part)

    def write(self, row: Mapping[str, float]) -> None:
        """Adds a row; raises UserError if it cannot be written."""
        paths.append_file(self._path, _format([row]))

    def flush(self) -> None:
        """Does nothing."""


class RowParts:
    """The rows of a run in a bucket, which are there once they are flushed."""

    def __init__(self, folder: Path, first_step: int):
        self._folder = folder / "metrics"
        self._part: list[Mapping[str, float]] = []
        for path in _files(folder):
            rows = _read(path)
            kept = _keep(rows, first_step)
            if kept and path.parent == self._folder:
                # It continues: another part could have the same first step.
                self._part = list(kept) if len(kept) < PART_ROWS else []
            if not kept:
                paths.remove(path)
            elif len(kept) < len(rows):
                paths.write_file(path, _format(kept))
        self._unsaved = False

    def write(self, row: Mapping[str, float]) -> None:
        """Adds a row; raises UserError if it cannot be written."""
        self._part.append(row)
        self._unsaved = True
        if len(self._part) == PART_ROWS:
            self.flush()
            self._part = []

    def flush(self) -> None:
        """Writes the last part."""
        if self._unsaved:
            first = int(self._part[0]["step"])
            paths.write_file(self._folder / f"{first:09d}.jsonl", _format(self._part))
        self._unsaved = False


def _keep(rows: Sequence[Row], first_step: int) -> list[Row]:
    """Returns the rows up to a step; a run that starts from step 0 evaluates that again too."""
    return [row for row in rows if first_step and row["step"] <= first_step]


def _files(folder: Path) -> list[Path]:
    whole = folder / "metrics.jsonl"
    return [whole, *_parts(folder)] if paths.exists(whole) else _parts(folder)


def _parts(folder: Path) -> list[Path]:
    return paths.glob(folder / "metrics", "*.jsonl")


def _read(path: Path) -> list[Row]:
    return read_lines(path, _row, "is not a row of metrics")


def _row(line: str) -> Row:
    row = parse_object(line, finite=False)
    for value in row.values():
        parse_number(value)
    if not parse_number(row.get("step")).is_integer():
        raise ValueError(f"step {row['step']} is not a whole number")
    return row


def _format(rows: Sequence[Mapping[str, float]]) -> str:
    return "".join(json.dumps(dict(row)) + "\n" for row in rows)
