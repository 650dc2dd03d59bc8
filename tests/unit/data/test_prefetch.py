"""Batches fetched batches: the same, in order, and counted when they are delivered."""

from __future__ import annotations

import threading
import time

import pytest

from modality_forcing.data.prefetch import PrefetchToDevice
from modality_forcing.errors import UserError


class Numbers:
    """Batches that are their own numbers, but for a broken one."""

    def __init__(self, broken: int = -1):
        self.at, self.broken, self.closed = 0, broken, False

    def __next__(self) -> int:
        if self.at == self.broken:
            raise UserError("cannot be read", where=f"{self.at}.png", hint="replace it")
        self.at += 1
        return self.at - 1

    def pop_stats(self) -> dict[str, float]:
        return {"wait": 0.5}

    def records(self, number: int) -> dict[str, list[int]]:
        return {"": [number]}

    def get_state(self) -> dict[str, int]:
        return {"batches": self.at}

    def set_state(self, state) -> None:
        self.at = state["batches"]
        self.closed = True


def test_one_thread_puts_batches_in_order():
    put, numbers = [], Numbers()

    def place(number: int) -> str:
        put.append(threading.current_thread().name)
        return f"on device: {number}"

    batches = PrefetchToDevice(numbers, place)
    assert put == [] and iter(batches) is batches  # nothing is fetched before it is asked for
    assert [next(batches) for _ in range(2)] == ["on device: 0", "on device: 1"]
    assert batches.get_state() == {"batches": 2}
    while len(put) < 4:  # two more wait, and no third is fetched
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(put) == 4 and all(name.startswith("prefetch") for name in put) and len(set(put)) == 1
    assert batches.pop_stats() == {"wait": 0.5}


def test_close_and_set_state_resume_at_the_delivered_batch():
    numbers = Numbers()
    batches = PrefetchToDevice(numbers, lambda number: number, depth=5)
    assert [next(batches) for _ in range(2)] == [0, 1]
    batches.close()
    assert numbers.get_state() == batches.get_state() == {"batches": 2}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert [next(batches) for _ in range(2)] == [2, 3]
    batches.set_state({"batches": 7})
    assert batches.get_state() == {"batches": 7} and next(batches) == 7
    batches.close()
    assert PrefetchToDevice(numbers, lambda number: number).get_state() == {"batches": 8}


def test_loader_error_is_raised_in_order():
    numbers = Numbers(broken=3)
    batches = PrefetchToDevice(numbers, lambda number: number)
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="cannot be read"):
        next(batches)
    assert batches.get_state() == numbers.get_state() == {"batches": 3} and numbers.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_error_of_put_is_raised():
    def broken(number: int) -> None:
        raise ValueError(f"no room for {number}")

    batches = PrefetchToDevice(Numbers(), broken)
    with pytest.raises(ValueError, match="no room for 0"):
        next(batches)
    assert batches.get_state() == {"batches": 0}
