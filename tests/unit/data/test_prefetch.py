"""Batches fetched ahead: the same, in order, and counted when they are delivered."""

from __future__ import annotations

import threading
import time

import pytest

from modality_forcing.data.prefetch import Ahead
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

    def told(self) -> dict[str, float]:
        return {"wait": 0.5}

    def get_state(self) -> dict[str, int]:
        return {"batches": self.at}

    def set_state(self, state) -> None:
        self.at = state["batches"]
        self.closed = True


def test_they_are_put_in_order_by_one_thread_and_count_when_delivered():
    put, numbers = [], Numbers()

    def place(number: int) -> str:
        put.append(threading.current_thread().name)
        return f"on device: {number}"

    ahead = Ahead(numbers, place)
    assert put == [] and iter(ahead) is ahead  # nothing is fetched before it is asked for
    assert [next(ahead) for _ in range(2)] == ["on device: 0", "on device: 1"]
    assert ahead.get_state() == {"batches": 2}
    while len(put) < 4:  # two more wait, and no third is fetched
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(put) == 4 and all(name.startswith("ahead") for name in put) and len(set(put)) == 1
    assert ahead.told() == {"wait": 0.5}


def test_it_goes_on_where_the_caller_left_off():
    numbers = Numbers()
    ahead = Ahead(numbers, lambda number: number, depth=5)
    assert [next(ahead) for _ in range(2)] == [0, 1]
    ahead.close()
    assert numbers.get_state() == ahead.get_state() == {"batches": 2}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
    assert [next(ahead) for _ in range(2)] == [2, 3]
    ahead.set_state({"batches": 7})
    assert ahead.get_state() == {"batches": 7} and next(ahead) == 7
    ahead.close()
    assert Ahead(numbers, lambda number: number).get_state() == {"batches": 8}


def test_an_error_arrives_as_itself_and_in_its_place():
    numbers = Numbers(broken=3)
    ahead = Ahead(numbers, lambda number: number)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="cannot be read"):
        next(ahead)
    assert ahead.get_state() == numbers.get_state() == {"batches": 3} and numbers.closed
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_what_put_raises_arrives_too():
    def broken(number: int) -> None:
        raise ValueError(f"no room for {number}")

    ahead = Ahead(Numbers(), broken)
    with pytest.raises(ValueError, match="no room for 0"):
        next(ahead)
    assert ahead.get_state() == {"batches": 0}
