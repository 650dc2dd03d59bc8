"""Where numbers go while a run goes on: one line on the terminal, rows in metrics.jsonl, TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from modality_forcing.atomic_io import write_file
from modality_forcing.errors import UserError


class MetricWriter:
    """Writes scalars to `folder/metrics.jsonl` and to TensorBoard event files beside it.

    clu's writer would need all of TensorFlow for the same event files.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        # Steps after the restored one will be run again: without this the curves would hold them twice.
        kept = [row for row in read_metrics(folder) if row["step"] <= first_step]
        write_file(self._path, "".join(json.dumps(row) + "\n" for row in kept))
        self._events = SummaryWriter(
            str(folder / "events"), purge_step=first_step + 1 if first_step else None
        )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records the scalars of one step, durably; raises UserError if the disk is full."""
        try:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")
        except OSError as error:
            hint = "make room and run the same command again"
            raise UserError(
                f"cannot be written ({error.strerror})", where=self._path, hint=hint
            ) from error
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the event file."""
        self._events.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Returns the rows written so far; a last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def param_summary(params: Mapping[str, Any]) -> str:
    """Returns the number of parameters and arrays in nested dicts of weights or of their shapes, as text."""
    from clu import parameter_overview  # the edge: whoever only reads metrics need not have it

    count = parameter_overview.count_parameters(dict(params))
    return f"{count / 1e6:.2f} M parameters in {len(parameter_overview.flatten_dict(dict(params)))} arrays"
