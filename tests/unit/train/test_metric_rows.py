"""Rows in parts: as many objects as needed, each row once, from wherever they are read."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from modality_forcing import paths
from modality_forcing.train import metric_rows
from modality_forcing.train.metric_rows import open_rows, read_metrics


def write(folder, first: int, steps: Iterable[int]) -> None:
    rows = open_rows(folder, first)
    for step in steps:
        rows.write({"step": step, "loss": step / 2})
    rows.flush()
    rows.flush()


def steps(folder) -> list[float]:
    return [row["step"] for row in read_metrics(folder)]


@pytest.mark.parametrize("first", [0, 2, 3, 4, 6, 9])
def test_parts_hold_each_step_once_after_a_resume(gs_path, first, monkeypatch):
    monkeypatch.setattr(metric_rows, "PART_ROWS", 3)
    write(gs_path, 0, range(1, 8))
    names = [path.name for path in paths.list_dir(gs_path / "metrics")]
    assert names == ["000000001.jsonl", "000000004.jsonl", "000000007.jsonl"]
    write(gs_path, first, range(first + 1, 13))
    assert steps(gs_path) == [*range(1, min(first, 7) + 1), *range(first + 1, 13)]


def test_a_resumed_run_may_add_rows_of_its_first_step(gs_path):
    """An evaluation that a signal cut off is done by the resumed run, in the step of the save."""
    write(gs_path, 0, [3])
    write(gs_path, 3, [3, 4])
    assert steps(gs_path) == [3, 3, 4]


def test_a_run_that_starts_again_writes_step_0_again(tmp_path, gs_path):
    for folder in (tmp_path, gs_path):
        write(folder, 0, [0, 1])
        write(folder, 0, [0, 1, 2])
        assert steps(folder) == [0, 1, 2]


def test_a_run_may_move_between_disk_and_bucket(tmp_path, gs_path):
    write(tmp_path, 0, range(1, 5))
    paths.write_file(gs_path / "metrics.jsonl", paths.read_bytes(tmp_path / "metrics.jsonl"))
    write(gs_path, 3, range(4, 7))
    assert steps(gs_path) == [1, 2, 3, 4, 5, 6]
    for path in (gs_path / "metrics.jsonl", *paths.list_dir(gs_path / "metrics")):
        paths.write_file(tmp_path / path.relative_to(gs_path).as_posix(), paths.read_bytes(path))
    write(tmp_path, 5, range(6, 8))
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6, 7]
    assert paths.list_dir(tmp_path / "metrics") == []


def test_nothing_is_written_to_a_bucket_without_rows(bucket, gs_path):
    write(gs_path, 0, range(0))
    assert paths.glob(gs_path, "*") == []
