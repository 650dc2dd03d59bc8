"""The cache: every record read once, within its budget, and nothing else changed."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from modality_forcing.data.in_memory import InMemory
from modality_forcing.data.records import Record
from modality_forcing.errors import UserError


class Counting:
    def __init__(self, length: int, **more: np.ndarray):
        self.length, self.more = length, more
        self.reads: Counter[int] = Counter()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        self.reads[index] += 1
        if index >= self.length:
            raise UserError("cannot be read", where=f"{index}.png")
        plane = np.full((64, 64), index + 1, np.float32)  # 32 KiB of image, depth and mask
        image, valid = np.full((64, 64, 3), index, np.uint8), np.ones((64, 64), np.bool_)
        camera = np.eye(3, dtype=np.float32)
        record = Record(image, plane, valid, camera, "metric", "", "counting", str(index))
        return replace(record, **self.more)


class Missing:
    """A source whose record 3 cannot be read."""

    def __init__(self, source: Counting):
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        return self.source[99 if index == 3 else index]


def test_reads_each_record_once():
    source = Counting(5)
    cached = InMemory(source)
    first = [cached[i] for i in (3, 1, 3, 0, 1)]
    assert source.reads == {3: 1, 1: 1, 0: 1}
    assert [record.id for record in first] == ["3", "1", "3", "0", "1"]
    assert first[0] is first[2] and len(cached) == 5


def test_keeps_what_fits_and_reads_the_rest_again():
    source = Counting(100)
    cached = InMemory(source, megabytes=1)
    for _ in range(3):
        for index in range(100):
            assert cached[index].depth[0, 0] == index + 1
    kept = [index for index in range(100) if source.reads[index] == 1]
    assert kept == list(range(len(kept))) and 28 <= len(kept) <= 32
    assert all(source.reads[index] == 3 for index in range(len(kept), 100))


def test_normals_and_latents_take_memory():
    for name in ("normals", "latents"):
        source = Counting(100, **{name: np.zeros((64, 64, 3), np.float32)})
        cached = InMemory(source, megabytes=1)
        for index in (*range(100), *range(100)):
            cached[index]
        kept = sum(source.reads[index] == 1 for index in range(100))
        assert 9 <= kept <= 13, name  # 32 KiB of the rest, 48 KiB of these


def test_copy_starts_empty():
    cached = InMemory(Counting(3), megabytes=7)
    cached[0]
    other = copy.deepcopy(cached)
    assert other.megabytes == 7 and len(other) == 3
    other[0]
    assert other.source.reads[0] == 2  # the copy of the counter has seen one, and reads again


def test_errors_are_not_cached():
    source = Counting(1)
    cached = InMemory(source)
    for _ in range(2):
        with pytest.raises(UserError):
            cached[1]
    assert source.reads[1] == 2


def test_fill_reads_in_order_what_fits_and_is_missing():
    source = Counting(100)
    cached = InMemory(source, megabytes=1)
    first = cached[40]
    cached.fill(workers=1)
    kept = [index for index in range(100) if source.reads[index] and cached[index] is cached[index]]
    assert kept[:-1] == list(range(len(kept) - 1)) and 28 <= len(kept) <= 32
    assert cached[40] is first and source.reads[40] == 1
    assert [cached[index].id for index in kept] == [str(index) for index in kept]


def test_fill_for_a_run_that_needs_fewer_records_reads_none():
    source = Counting(3)
    cached = InMemory(source)
    cached.fill_for(2)
    assert not source.reads
    cached.fill_for(3)
    assert dict(source.reads) == {0: 1, 1: 1, 2: 1}


def test_fill_leaves_errors_to_the_reader(capsys: pytest.CaptureFixture[str]):
    source = Counting(5)
    cached = InMemory(Missing(source))
    cached.fill(workers=1)
    assert "records into memory  4/5" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be read"):
        cached[3]
    before = dict(source.reads)
    assert [cached[index].id for index in (0, 1, 2, 4)] == ["0", "1", "2", "4"]
    assert source.reads == before


def test_fill_with_nothing_missing_is_silent(capsys: pytest.CaptureFixture[str]):
    cached = InMemory(Counting(1))
    cached[0]
    cached.fill()
    assert capsys.readouterr().err == ""
