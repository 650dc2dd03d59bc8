"""The metrics of a run: one row every train.log_every steps, times, evaluations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import jax

from modality_forcing import distributed
from modality_forcing.config import Config, to_dict
from modality_forcing.paths import write_file
from modality_forcing.progress import ProgressMeter
from modality_forcing.train import throughput
from modality_forcing.train.checkpoint import Metadata
from modality_forcing.train.evaluation import EvalResult
from modality_forcing.train.metrics import MetricWriter, last_value
from modality_forcing.train.run_clock import RunClock
from modality_forcing.train.step_metrics import Metrics, Values, summarize, to_values
from modality_forcing.train.wandb_log import WandbLog
from modality_forcing.viz.images import png_bytes

# Prefixes of what depends on the machine and its load. All else is equal in a resumed run.
MEASURED = ("perf/", "memory/", "data_wait_fraction", "elapsed_s", "compile_s", "started_unix_s")
MEASURED += ("total_data_wait_fraction",)


class TrainLogger:
    """Collects the metrics of steps and writes a row of them, in the first process.

    Metrics that are not written yet go into checkpoints, so that a resumed run writes the rows of
    an uninterrupted one.

    Args:
      start_step, metadata: of the checkpoint that the run starts from.
      loader_stats: returns what the loader counted since the last call.
      clock: started when the process began to prepare the run.
      wandb: whether rows go to Weights & Biases too.

    Attributes:
      pending: metrics of the steps since the last row.
      evaluated_step: of the last row of `eval/`, -1 before the first.
      clock: where the time goes; the loop adds to its attributes.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        *,
        start_step: int,
        metadata: Metadata,
        loader_stats: Callable[[], Mapping[str, float]],
        clock: RunClock,
        wandb: bool = False,
    ):
        self._loader_stats, self.clock = loader_stats, clock
        self._steps = config.train.steps
        self._sheets = workdir / "sheets"
        self._earlier_s = metadata.get("elapsed_s", 0.0)  # of the processes before this one
        self._start = time.monotonic()
        self._cost = throughput.step_cost(config)
        saved, began = metadata.get("clock"), None
        if primary := distributed.is_primary():
            began = last_value(workdir, "started_unix_s")
        clock.resume(saved, began)
        more = [WandbLog(workdir, config.name, to_dict(config))] if wandb and primary else []
        self._writer = MetricWriter(workdir, start_step, more) if primary else None
        # A run that is killed before its first checkpoint has it too.
        if self._writer and saved is None and (began is None or not start_step):
            self._writer.write(start_step, {"started_unix_s": began or time.time()})
            self._writer.flush()
        self._progress = ProgressMeter(config.name, self._steps, done=start_step)
        self.pending: list[Metrics | Values] = list(metadata.get("pending_metrics", []))
        self._restored = len(self.pending)  # steps of earlier processes among the pending ones
        self._left_out = 0  # steps whose metrics are not pending
        self.evaluated_step: int = metadata.get("evaluated_step", -1)
        clock.begin_steps()

    def outside_steps(self) -> AbstractContextManager[None]:
        """Returns a context whose time does not count as that of steps, such as that of a save.

        It first waits for the steps that are in flight.
        """
        jax.block_until_ready(self.pending)
        return self.clock.outside_steps()

    def checkpoint_metadata(self, data_state: Mapping[str, int]) -> Metadata:
        """Returns what a checkpoint keeps besides the state, and stores the rows before it.

        data_state: the loader's position.
        """
        if self._writer:
            self._writer.flush()
        return {
            "data_state": data_state,
            "elapsed_s": self._earlier_s + time.monotonic() - self._start,
            "pending_metrics": to_values(self.pending),
            "evaluated_step": self.evaluated_step,
            "clock": self.clock.state(),
        }

    def leave_out(self, metrics: Sequence[Mapping[str, object]]) -> None:
        """Takes the metrics of some steps out of the pending ones."""
        kept = [row for row in self.pending if all(row is not one for one in metrics)]
        self._left_out += len(self.pending) - len(kept)
        self.pending = kept

    def log(self, step: int, skip_last: int = 0) -> None:
        """Writes a row of the pending metrics, if any, without the last `skip_last` of them."""
        end = len(self.pending) - skip_last
        if end < 1:
            return
        values, self.pending = to_values(self.pending[:end]), self.pending[end:]  # waits for them
        row = summarize(values)
        steps, self._restored, self._left_out = end + self._left_out - self._restored, 0, 0
        window_s, waited = self.clock.end_window()
        row["data_wait_fraction"] = waited
        # Statistics of each source of a mixture since the last row, or since the start of this
        # process.
        row |= {f"data/{n}": value for n, value in self._loader_stats().items() if "/" in n}
        if steps > 0 and window_s > 0:
            row |= self._cost.rates(window_s / steps)
        row |= {"perf/goodput": self.clock.goodput(), **throughput.memory()}
        if self._writer:
            self._writer.write(step, row)
            losses = {n: v for n, v in row.items() if n.startswith("loss") and "/" not in n}
            self._progress.report(step, **losses, wait=f"{row['data_wait_fraction']:.1%}")

    def write_evaluation(self, step: int, result: EvalResult, seconds: float) -> None:
        """Writes a row of `eval/` and the image sheet, as workdir/sheets/<step>.png too."""
        self.evaluated_step = step
        if self._writer:
            row = {f"eval/{name}": value for name, value in result.scalars.items()}
            self._writer.write(step, row | {"perf/eval_s": seconds})
            self._writer.write_image(step, "eval/sheet", result.sheet)
            write_file(self._sheets / f"{step:08d}.png", png_bytes(result.sheet))
            means = {n: v for n, v in row.items() if n.count("/") == 1}
            self._progress.report(step, **means, seconds=f"{seconds:.1f}")

    def write_summary(self, metadata: Metadata) -> None:
        """Writes the last row, the times of the whole run; metadata: of its last checkpoint."""
        summary = {
            "elapsed_s": metadata["elapsed_s"],
            "compile_s": self.clock.compile_s,
            "total_data_wait_fraction": self.clock.total_data_wait_share(),
            "perf/goodput": self.clock.goodput(),
        }
        if self._writer:
            self._writer.write(self._steps, summary)

    def close(self) -> None:
        """Ends the line on a terminal and flushes what was written."""
        if self._writer:
            self._writer.close()
            self._progress.close()
