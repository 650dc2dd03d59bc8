"""The metrics of a run on disk: rows in metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.text_io import parse_number, parse_object, split_lines


class MetricWriter:
    """Writes scalars to `folder/metrics.jsonl` and to TensorBoard event files beside it.

    tensorboardX, because clu's writer needs all of TensorFlow for the same files. A resumed run
    runs the steps after `first_step` again, so that their rows are removed.
    """

    def __init__(self, folder: Path, first_step: int):
        paths.make_folder(folder)
        self._path = folder / "metrics.jsonl"
        kept = [row for row in read_metrics(folder) if row["step"] <= first_step]
        paths.write_file(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        purge = first_step + 1 if first_step else None
        try:
            self._events = SummaryWriter(str(folder / "events"), purge_step=purge)
        except OSError as error:
            if error.filename is not None:
                raise paths.os_error(error, folder / "events", "written") from error
            what = f"TensorBoard's writer finds no shared memory ({paths.reason(error)})"
            hint = paths.hint_for(error, "make it writable")
            raise UserError(what, where="/dev/shm", hint=hint) from error

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends the scalars of one step; raises UserError if they cannot be written."""
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")
        except OSError as error:
            raise paths.os_error(error, self._path, "written") from error
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the event file."""
        self._events.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Returns the rows written so far, without a last line that a kill cut short.

    Raises UserError for any other line that is damaged: rows after it must not be lost.
    """
    path = folder / "metrics.jsonl"
    lines = split_lines(paths.read_text(path)) if paths.exists(path) else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_object(line, finite=False)
            for value in row.values():
                parse_number(value)
            if not parse_number(row.get("step")).is_integer():
                raise ValueError(f"step {row['step']} is not a whole number")
        except ValueError as error:
            if number == len(lines):
                break
            what = f"is not a row of metrics ({error})"
            raise UserError(what, where=f"{path}, line {number}", hint="remove the line") from error
        rows.append(row)
    return rows


def last_value(folder: Path, name: str) -> float | None:
    """Returns a scalar of the last row that has it, None if none does; raises as `read_metrics`."""
    return next((row[name] for row in reversed(read_metrics(folder)) if name in row), None)


def param_summary(params: Mapping[str, Any]) -> str:
    """Returns the size of a network as text, from nested dicts of weights or of their shapes."""
    from clu import parameter_overview  # not needed to read metrics

    count = parameter_overview.count_parameters(dict(params))
    arrays = len(parameter_overview.flatten_dict(dict(params)))
    return f"{count / 1e6:.2f} M parameters in {arrays} arrays"
