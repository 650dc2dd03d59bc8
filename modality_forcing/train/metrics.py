"""The metrics of a run on disk: rows in metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from modality_forcing.mirror import Mirror
from modality_forcing.train.events import EventFile
from modality_forcing.train.metric_rows import open_rows, read_metrics
from modality_forcing.tree import Tree

FLUSH_S = 60.0  # after which a row that is written brings all rows and events into a bucket


@runtime_checkable
class Backend(Protocol):
    """Where else rows go, besides the workdir."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def write_image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self) -> None: ...


class MetricWriter:
    """Writes scalars as rows (`metric_rows`) and to TensorBoard event files beside them.

    tensorboardX's files, because clu's writer needs all of TensorFlow for the same. A resumed run
    runs the steps after `first_step` again, so that their rows are removed. In a bucket, rows and
    events are stored by `flush`, by `close`, and by `write` once a minute: events are files of a
    temporary folder until then.

    more: where rows go too.
    """

    def __init__(self, folder: Path, first_step: int, more: Sequence[Backend] = ()):
        self._more = more
        self._rows = open_rows(folder, first_step)
        self._flushed = time.monotonic()
        purge = first_step + 1 if first_step else None
        self._mirror = Mirror(folder / "events")
        self._events = EventFile(self._mirror.local, purge)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds the scalars of one step; raises UserError if they cannot be written."""
        self._rows.write({"step": step, **scalars})
        self._events.add_scalars(step, scalars)
        for backend in self._more:
            backend.write(step, scalars)
        if time.monotonic() - self._flushed >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Stores what was written so far, as before a checkpoint, after which nothing is lost."""
        self._rows.flush()
        self._events.flush()
        self._mirror.upload()
        self._flushed = time.monotonic()

    def write_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Adds an image u8 [h w 3] to the events."""
        self._events.add_image(step, name, image)
        for backend in self._more:
            backend.write_image(step, name, image)

    def close(self) -> None:
        """Stores what was written, and ends the event file."""
        self._events.close()
        self._rows.flush()
        self._mirror.close()
        for backend in self._more:
            backend.close()


def last_value(folder: Path, name: str) -> float | None:
    """Returns a scalar of the last row that has it, None if none does; raises as `read_metrics`."""
    return next((row[name] for row in reversed(read_metrics(folder)) if name in row), None)


def param_table(params: Tree, frozen: Tree | None = None) -> str:
    """Returns a table of a network's weights, from nested dicts of them or of their shapes.

    frozen: those of them that do not train, which get a second table.
    """
    from clu import parameter_overview

    def table(tree: Tree) -> str:
        return parameter_overview.get_parameter_overview(dict(tree), include_stats=False) + "\n"

    return table(params) + (f"\nFrozen:\n{table(frozen)}" if frozen else "")


def param_summary(params: Tree) -> str:
    """Returns the size of a network as text, from nested dicts of weights or of their shapes."""
    from clu import parameter_overview  # not needed to read metrics

    count = parameter_overview.count_parameters(dict(params))
    arrays = len(parameter_overview.flatten_dict(dict(params)))
    return f"{count / 1e6:.2f} M parameters in {arrays} arrays"
