"""Rows of a run: the steps in them, what a checkpoint keeps of them, and who writes them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing import distributed
from modality_forcing.data.files import read_image
from modality_forcing.train.evaluation import EvalResult
from modality_forcing.train.logger import MEASURED, TrainLogger
from modality_forcing.train.metrics import read_metrics
from modality_forcing.train.run_clock import RunClock
from tests import tiny

CONFIG = tiny.t2i(steps=8)


class Clock(RunClock):
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(lambda: self.now, lambda: 1000.0 + self.now)


def logger(
    workdir: Path,
    *,
    start_step: int = 0,
    metadata: Mapping[str, Any] | None = None,
    loader_stats: Callable[[], Mapping[str, float]] = dict,
) -> TrainLogger:
    return TrainLogger(
        CONFIG,
        workdir,
        start_step=start_step,
        metadata=dict(metadata or {}),
        loader_stats=loader_stats,
        clock=Clock(),
    )


def advance(log: TrainLogger, seconds: float) -> None:
    assert isinstance(log.clock, Clock)
    log.clock.now += seconds


def step(loss: float) -> dict[str, Any]:
    """The metrics of a step, two losses in buckets of noise levels among them."""
    by_level = [[loss, 3 * loss, 0, 0, 0], [1, 3, 0, 0, 0]]
    return {"loss": jnp.float32(loss), "loss_image_by_level": jnp.float32(by_level)}


def rows(workdir: Path) -> list[dict[str, float]]:
    """The rows of losses, without what depends on the machine."""
    found = [row for row in read_metrics(workdir) if "loss" in row]
    return [{k: v for k, v in row.items() if not k.startswith(MEASURED)} for row in found]


def test_row_is_the_mean_of_the_pending_steps_but_the_last(tmp_path, capsys):
    log = logger(tmp_path)
    last = step(100.0)
    log.pending += [step(1.0), step(3.0), last]
    log.log(2, skip_last=1)
    assert log.pending == [last]
    log.log(3, skip_last=1)  # nothing is left for a row
    log.close()
    means = {"loss": 2.0, "loss_image": 2.0, "loss_image/t0.0-0.2": 2.0, "loss_image/t0.2-0.4": 2.0}
    assert rows(tmp_path) == [{"step": 2, **means}]
    # Losses in buckets are in the file alone.
    assert capsys.readouterr().err == "t2i  2/8  loss 2  loss_image 2  wait 0.0%\n"


def test_resumed_row_has_the_steps_before_the_checkpoint(tmp_path):
    whole = logger(tmp_path / "whole")
    whole.pending += [step(1.0), step(3.0)]
    whole.evaluated_step = 2
    saved = json.loads(json.dumps(whole.checkpoint_metadata({"batches": 2})))
    assert saved["data_state"] == {"batches": 2}
    resumed = logger(tmp_path / "resumed", start_step=2, metadata=saved)
    assert resumed.evaluated_step == 2
    for log in (whole, resumed):
        log.pending.append(step(8.0))
        log.log(3)
        log.close()
    assert rows(tmp_path / "whole") == rows(tmp_path / "resumed")
    assert rows(tmp_path / "whole")[0]["loss"] == 4.0


def test_rate_is_that_of_the_steps_of_this_process(tmp_path):
    """Those that were left out took time too; saves and steps of an earlier process did not."""
    log = logger(tmp_path, start_step=2, metadata={"pending_metrics": [{"loss": 9.0}] * 2})
    left_out = step(50.0)
    log.pending += [step(1.0), left_out]
    log.leave_out([left_out])
    with log.outside_steps():
        advance(log, 100)
    advance(log, 8)
    log.log(4)
    log.pending.append(step(1.0))
    advance(log, 3)
    log.log(5)
    log.close()
    first, second = (row for row in read_metrics(tmp_path) if "loss" in row)
    assert first["loss"] == pytest.approx((9 + 9 + 1) / 3)
    assert (first["perf/step_s"], second["perf/step_s"]) == (4.0, 3.0)
    assert first["perf/examples_per_s"] == CONFIG.train.batch / 4


def test_statistics_of_sources_are_logged(tmp_path):
    log = logger(tmp_path, loader_stats=lambda: {"nyuv2/share": 0.25, "wait_s": 7.0})
    log.pending.append(step(1.0))
    log.log(1)
    log.close()
    (row,) = rows(tmp_path)
    assert {name: v for name, v in row.items() if "data" in name} == {"data/nyuv2/share": 0.25}


def test_start_of_a_run_is_that_of_its_first_process(tmp_path, monkeypatch):
    times = iter((5.0, 6.0))
    fake = SimpleNamespace(time=lambda: next(times), monotonic=time.monotonic)
    monkeypatch.setattr("modality_forcing.train.logger.time", fake)

    def started() -> list[float]:
        found = read_metrics(tmp_path)
        return [row["started_unix_s"] for row in found if "started_unix_s" in row]

    logger(tmp_path).close()
    log = logger(tmp_path)  # the first one was killed before its first checkpoint
    assert started() == [5.0]
    saved = log.checkpoint_metadata({"batches": 2})
    assert saved["clock"]["unix_s"] - saved["clock"]["wall_s"] == pytest.approx(5.0)
    log.close()
    logger(tmp_path, start_step=2, metadata=saved).close()
    assert started() == [5.0]


def test_evaluation_has_a_row_and_a_sheet(tmp_path, capsys):
    log = logger(tmp_path)
    sheet = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    assert log.evaluated_step == -1
    log.write_evaluation(4, EvalResult({"absrel": 0.5, "loss/t0.0-0.2": 1.5}, sheet), 2.5)
    assert log.evaluated_step == log.checkpoint_metadata({})["evaluated_step"] == 4
    log.close()
    row = {"step": 4, "eval/absrel": 0.5, "eval/loss/t0.0-0.2": 1.5, "perf/eval_s": 2.5}
    assert read_metrics(tmp_path)[1:] == [row]
    np.testing.assert_array_equal(read_image(tmp_path / "sheets/00000004.png"), sheet)
    assert capsys.readouterr().err == "t2i  4/8  eval/absrel 0.5  seconds 2.5\n"


def test_summary_is_of_the_whole_run(tmp_path):
    log = logger(tmp_path, start_step=4, metadata={"elapsed_s": 60.0})
    advance(log, 10)
    log.clock.compile_s, log.clock.data_wait_s = 1.0, 2.0
    metadata = log.checkpoint_metadata({"batches": 8})
    assert 60 <= metadata["elapsed_s"] < 120
    log.write_summary(metadata)
    log.close()
    summary = read_metrics(tmp_path)[-1]
    assert (summary["step"], summary["elapsed_s"]) == (8, metadata["elapsed_s"])
    assert (summary["compile_s"], summary["total_data_wait_fraction"]) == (1.0, 0.2)
    assert summary["perf/goodput"] == pytest.approx((10 - 1 - 2) / 10)


def test_other_processes_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    log = logger(tmp_path)
    log.pending += [step(1.0), step(2.0)]
    log.log(1, skip_last=1)
    log.write_evaluation(2, EvalResult({"absrel": 0.5}, np.zeros((4, 6, 3), np.uint8)), 2.5)
    metadata = log.checkpoint_metadata({"batches": 2})
    log.write_summary(metadata)
    log.close()
    assert metadata["pending_metrics"][0]["loss"] == 2.0 and metadata["evaluated_step"] == 2
    assert not list(tmp_path.iterdir()) and capsys.readouterr() == ("", "")
