"""What a run tells of itself: means of its metrics, how long it waited for data, and that it is still finite."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from modality_forcing import distributed
from modality_forcing.config import Config
from modality_forcing.progress import ProgressMeter
from modality_forcing.train.metrics import MetricWriter


class TrainLogger:
    """Collects what steps return and tells it every train.log_every of them; of several processes, the first tells.

    What is not told yet goes into checkpoints, so that a run resumed writes the rows of one that was never interrupted.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        first: int,
        extra: dict[str, Any],
        data: Callable[[], dict[str, float]] = dict,
    ):
        self._data = (
            data  # what the batches since it was last asked were like (`data.pipeline.Told`)
        )
        self._every, self._steps = config.train.log_every, config.train.steps
        self._before = extra.get("seconds", 0.0)  # of the runs before this one
        self._writer = MetricWriter(workdir, first) if distributed.is_primary() else None
        self._progress = ProgressMeter(config.name, config.train.steps, done=first)
        self._started = self._mark = time.monotonic()
        self._marked_wait = 0.0
        self.waited = self.compiling = 0.0
        self.pending: list[dict[str, Any]] = list(
            extra.get("pending", [])
        )  # metrics of the steps that no row tells of yet

    def extras(self, data: dict[str, int]) -> dict[str, Any]:
        """Returns what a checkpoint keeps besides the state, all of it JSON; data: the loader's state."""
        return {"data": data, "seconds": self._seconds(), "pending": _numbers(self.pending)}

    def tell(self, done: int, but: int = 0) -> None:
        """Writes a row of the pending metrics, all but the last `but`; raises FloatingPointError if it is not finite."""
        last = len(self.pending) - but
        values, now = self._mean(self.pending[:last]), time.monotonic()
        self.pending = self.pending[last:]
        values["data_wait"] = (self.waited - self._marked_wait) / (now - self._mark)
        self._mark, self._marked_wait = now, self.waited
        # Of each source of a mixture, since the last row or the start of this process.
        values |= {f"data/{name}": value for name, value in self._data().items() if "/" in name}
        self._check_finite(values, done)
        if self._writer:
            self._writer.write(done, values)
            shown = {n: v for n, v in values.items() if n.startswith("loss")}
            self._progress.report(done, **shown, wait=f"{values['data_wait']:.1%}")

    def check(self, done: int) -> None:
        """Raises FloatingPointError if what is pending is not finite."""
        self._check_finite(self._mean(self.pending), done)

    def summarise(self, extras: dict[str, Any]) -> None:
        """Writes the last row: what the whole run took."""
        ran = time.monotonic() - self._started
        timing = {
            "seconds": extras["seconds"],
            "compile": self.compiling,
            "data_wait_total": self.waited / ran,
        }
        if self._writer:
            self._writer.write(self._steps, timing)

    def close(self) -> None:
        """Ends the line on a terminal and flushes what was written."""
        if self._writer:
            self._writer.close()
            self._progress.close()

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def _mean(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        told = _numbers(rows)
        return {name: float(np.mean([row[name] for row in told])) for name in told[0]}

    def _check_finite(self, values: dict[str, float], step: int) -> None:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"{', '.join(bad)} not finite between steps {step - self._every} and {step}"
            )


def _numbers(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items()} for row in jax.device_get(rows)]
