"""Shard jobs: which shard holds what, and which job writes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from modality_forcing import locks
from modality_forcing.errors import UserError
from modality_forcing.storage.shard_job import ShardJob, hold_job, remove_temp_files

JOB = ShardJob(Path("out"), name="tum", split="train", total=20, shard_size=8)


def test_items_are_divided_in_order():
    assert JOB.count == 3 and JOB.path(1) == Path("out/tum-train.array_record-00001-of-00003")
    items = [list(JOB.items(index)) for index in range(3)]
    assert items == [list(range(8)), list(range(8, 16)), list(range(16, 20))]
    assert replace(JOB, total=16).count == 2


def test_jobs_share_the_shards():
    assert [list(JOB.assigned((i, 2))) for i in range(2)] == [[0, 2], [1]]
    assert JOB.size(JOB.assigned((0, 2))) == 12


def test_only_temp_files_of_the_same_shard_are_removed(tmp_path: Path):
    for name in (".a.x", ".b.x", "a"):
        (tmp_path / name).touch()
    remove_temp_files(tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.x", "a"]


def test_job_is_refused_while_it_or_one_of_another_number_runs(tmp_path):
    with hold_job(tmp_path, "prepare-train", (0, 2)):
        with (
            pytest.raises(UserError, match="in use by process"),
            hold_job(tmp_path, "prepare-train", (0, 2)),
        ):
            pass
        with (
            pytest.raises(UserError, match=r"in use by .* with another number of jobs"),
            hold_job(tmp_path, "prepare-train", (1, 3)),
        ):
            pass
        with (
            hold_job(tmp_path, "prepare-train", (1, 2)),
            hold_job(tmp_path, "prepare-test", (0, 1)),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_at_most_one_of_two_numbers_of_jobs_starts_at_the_same_instant(tmp_path, monkeypatch):
    """Both reach the taking of their own lock before either takes it."""
    barrier, held, jobs = threading.Barrier(2), locks.hold, ((0, 2), (0, 3))

    @contextmanager
    def hold_together(*arguments) -> Iterator[None]:
        barrier.wait(timeout=10)
        with held(*arguments):
            yield

    monkeypatch.setattr(locks, "hold", hold_together)
    ended = threading.Barrier(2)

    def start(shard: tuple[int, int]) -> bool:
        try:
            with hold_job(tmp_path, "prepare-train", shard):
                ended.wait(timeout=10)  # its lock is held until the other has looked
        except UserError as error:
            assert "with another number of jobs" in str(error)
            ended.wait(timeout=10)
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        started = list(pool.map(start, jobs))
    assert sum(started) < 2
    assert list(tmp_path.iterdir()) == []
