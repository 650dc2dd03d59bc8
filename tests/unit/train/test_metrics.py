"""Rows and events: nothing twice after a restart, nothing lost to a kill."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.train import metrics
from modality_forcing.train.metrics import MetricWriter, param_summary, read_metrics


def write(folder, first: int, *rows: tuple[int, dict[str, float]]) -> None:
    writer = MetricWriter(folder, first)
    for step, scalars in rows:
        writer.write(step, scalars)
    writer.close()


def test_rows_are_read_back(folder):
    assert read_metrics(folder) == []
    write(folder / "new", 0, (1, {"loss": 0.1}), (2, {"loss": 1 / 3, "extra": 2.0}))
    assert read_metrics(folder / "new") == [
        {"step": 1, "loss": 0.1},
        {"step": 2, "loss": 1 / 3, "extra": 2.0},
    ]


def test_rows_are_on_disk_before_close(tmp_path):
    writer = MetricWriter(tmp_path, 0)
    writer.write(1, {"loss": 0.1})
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.1}]
    writer.close()


def test_resumed_run_writes_no_step_twice(folder):
    write(folder, 0, *((k, {"loss": float(k)}) for k in (1, 2, 3, 4, 5)))
    write(folder, 3, (4, {"loss": 40.0}))
    assert [row["loss"] for row in read_metrics(folder)] == [1.0, 2.0, 3.0, 40.0]


def test_restarted_run_removes_old_rows(folder):
    write(folder, 0, (1, {"loss": 1.0}))
    write(folder, 0)
    assert read_metrics(folder) == []


def test_rows_reach_a_bucket_when_flushed_and_once_a_minute(gs_path, monkeypatch):
    writer = MetricWriter(gs_path, 0)
    writer.write(1, {"loss": 0.1})
    assert read_metrics(gs_path) == []
    writer.flush()
    assert read_metrics(gs_path) == [{"step": 1, "loss": 0.1}]
    monkeypatch.setattr(metrics, "FLUSH_S", 0.0)
    writer.write(2, {"loss": 0.2})
    assert [row["step"] for row in read_metrics(gs_path)] == [1, 2]
    writer.close()


def test_truncated_last_line_is_ignored_and_repaired(tmp_path):
    write(tmp_path, 0, (1, {"loss": 1.0}), (2, {"loss": 2.0}))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-7])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    write(tmp_path, 2, (3, {"loss": 3.0}))
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 3]


@pytest.mark.parametrize("step", ["1e999", "0.5", "NaN", "true", '"1"', "null"])
def test_row_without_a_whole_step_is_refused(tmp_path, step):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": {step}, "a": 1}}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=r"line 1: is not a row of metrics"):
        read_metrics(tmp_path)


def test_last_value_is_that_of_the_last_row_with_it(tmp_path):
    assert metrics.last_value(tmp_path, "loss") is None
    write(tmp_path, 0, (1, {"loss": 1.0}), (2, {"loss": 2.0}), (2, {"elapsed_s": 9.0}))
    assert metrics.last_value(tmp_path, "loss") == 2 and metrics.last_value(tmp_path, "a") is None


def test_tensorboard_events_hold_the_scalars(folder):
    write(folder, 0, (7, {"loss_depth": 0.25}))
    (events,) = paths.list_dir(folder / "events")
    assert "tfevents" in events.name and b"loss_depth" in paths.read_bytes(events)


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    writer = MetricWriter(tmp_path, 0)
    writer._rows._path = tmp_path / "no such folder" / "metrics.jsonl"  # any OSError will do
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written"):
        writer.write(1, {"loss": 1.0})
    writer.close()


def test_param_summary_counts_parameters_and_arrays():
    weights = {"a": {"w": np.zeros((1000, 250)), "b": np.zeros(5000)}, "scale": np.zeros(())}
    assert param_summary(weights) == "0.26 M parameters in 3 arrays"


@pytest.mark.parametrize(
    "damaged", ['{"step": 2, "loss": }', "[1]", '{"loss": 1.0}', '{"step": 2, "loss": "low"}']
)
def test_rows_after_a_damaged_line_are_not_lost(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    text = f'{{"step": 1, "loss": NaN}}\n{damaged}\n{{"step": 3, "loss": 1}}\n'
    path.write_text(text)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: is not a row of metrics"):
        MetricWriter(tmp_path, 3)
    assert path.read_text() == text
