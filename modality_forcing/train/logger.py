"""The metrics of a run: means over train.log_every steps, times, a check for NaN."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from modality_forcing import distributed
from modality_forcing.config import Config
from modality_forcing.paths import write_file
from modality_forcing.progress import ProgressMeter
from modality_forcing.train.checkpoint import Metadata
from modality_forcing.train.evaluation import EvalResult
from modality_forcing.train.metrics import MetricWriter
from modality_forcing.viz.images import png_bytes

Row = Mapping[str, jax.Array | float]  # metrics of one step


class TrainLogger:
    """Collects the metrics of steps and writes their means, in the first process.

    Metrics that are not written yet go into checkpoints, so that a resumed run writes the rows of
    an uninterrupted one.

    Args:
      start_step, metadata: of the checkpoint that the run starts from.
      loader_stats: returns what the loader counted since the last call.

    Attributes:
      pending: metrics of the steps since the last row.
      evaluated_step: of the last row of `eval/`, -1 before the first.
      data_wait_s: seconds for which the devices waited for data, in this process.
      compile_s: seconds of the first step's compilation.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        *,
        start_step: int,
        metadata: Metadata,
        loader_stats: Callable[[], Mapping[str, float]],
    ):
        self._loader_stats = loader_stats
        self._every, self._steps = config.train.log_every, config.train.steps
        self._sheets = workdir / "sheets"
        self._earlier_s = metadata.get("elapsed_s", 0.0)  # of the processes before this one
        primary = distributed.is_primary()
        self._writer = MetricWriter(workdir, start_step) if primary else None
        self._progress = ProgressMeter(config.name, self._steps, done=start_step)
        self._start = self._last_row = time.monotonic()
        self._last_data_wait_s = 0.0
        self.data_wait_s = self.compile_s = 0.0
        self.pending: list[Row] = list(metadata.get("pending_metrics", []))
        self.evaluated_step: int = metadata.get("evaluated_step", -1)

    def checkpoint_metadata(self, data_state: Mapping[str, int]) -> Metadata:
        """Returns what a checkpoint keeps besides the state, and stores the rows before it.

        data_state: the loader's position.
        """
        if self._writer:
            self._writer.flush()
        elapsed = self._earlier_s + time.monotonic() - self._start
        pending = _to_floats(self.pending)
        return {
            "data_state": data_state,
            "elapsed_s": elapsed,
            "pending_metrics": pending,
            "evaluated_step": self.evaluated_step,
        }

    def log(self, step: int, skip_last: int = 0) -> None:
        """Writes the mean of the pending metrics, without the last `skip_last` of them.

        Raises FloatingPointError if one is not finite.
        """
        end, now = len(self.pending) - skip_last, time.monotonic()
        row, self.pending = _mean(self.pending[:end]), self.pending[end:]
        waited = self.data_wait_s - self._last_data_wait_s
        row["data_wait_fraction"] = waited / (now - self._last_row)
        self._last_row, self._last_data_wait_s = now, self.data_wait_s
        # Statistics of each source of a mixture since the last row, or since the start of this
        # process.
        row |= {f"data/{n}": value for n, value in self._loader_stats().items() if "/" in n}
        self._check_finite(row, step)
        if self._writer:
            self._writer.write(step, row)
            losses = {n: value for n, value in row.items() if n.startswith("loss")}
            self._progress.report(step, **losses, wait=f"{row['data_wait_fraction']:.1%}")

    def write_evaluation(self, step: int, result: EvalResult, seconds: float) -> None:
        """Writes a row of `eval/` and the image sheet, as workdir/sheets/<step>.png too."""
        self.evaluated_step = step
        self._last_row += seconds  # no data was waited for
        if self._writer:
            row = {f"eval/{name}": value for name, value in result.scalars.items()}
            self._writer.write(step, row | {"perf/eval_s": seconds})
            self._writer.write_image(step, "eval/sheet", result.sheet)
            write_file(self._sheets / f"{step:08d}.png", png_bytes(result.sheet))
            means = {n: v for n, v in row.items() if n.count("/") == 1}
            self._progress.report(step, **means, seconds=f"{seconds:.1f}")

    def check_finite(self, step: int) -> None:
        """Raises FloatingPointError if a pending metric is not finite."""
        if self.pending:
            self._check_finite(_mean(self.pending), step)

    def write_summary(self, metadata: Metadata) -> None:
        """Writes the last row, the times of the whole run; metadata: of its last checkpoint."""
        summary = {
            "elapsed_s": metadata["elapsed_s"],
            "compile_s": self.compile_s,
            "total_data_wait_fraction": self.data_wait_s / (time.monotonic() - self._start),
        }
        if self._writer:
            self._writer.write(self._steps, summary)

    def close(self) -> None:
        """Ends the line on a terminal and flushes what was written."""
        if self._writer:
            self._writer.close()
            self._progress.close()

    def _check_finite(self, row: Mapping[str, float], step: int) -> None:
        if bad := [name for name, value in row.items() if not math.isfinite(value)]:
            what = f"{', '.join(bad)} not finite between steps {step - self._every} and {step}"
            raise FloatingPointError(what)


def _mean(metrics: Sequence[Row]) -> dict[str, float]:
    rows = _to_floats(metrics)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _to_floats(metrics: Sequence[Row]) -> list[dict[str, float]]:
    return [{k: float(v) for k, v in row.items()} for row in jax.device_get(list(metrics))]
