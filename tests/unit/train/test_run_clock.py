"""Goodput: what counts as lost, over restarts and with a clock that is set back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.train.run_clock import RunClock


class Time:
    """A monotonic and a wall clock that are moved by hand."""

    def __init__(self, wall: float = 1000.0):
        self.now, self.offset = 0.0, wall

    def clock(self) -> RunClock:
        return RunClock(lambda: self.now, lambda: self.now + self.offset)


def test_preparation_compilation_saves_and_waiting_are_lost():
    time = Time()
    clock = time.clock()
    time.now += 10  # preparation
    clock.resume(None, None)
    clock.begin_steps()
    time.now += 20
    clock.compile_s = 15
    with clock.outside_steps():
        time.now += 5
    time.now += 30
    clock.data_wait_s += 10
    assert clock.goodput() == pytest.approx((20 - 15 + 30 - 10) / 65)
    assert clock.end_window() == (35, pytest.approx(10 / 55))  # steps as they are felt: waiting too
    time.now += 7
    assert clock.end_window() == (7, 0)


def test_time_between_processes_and_undone_steps_are_lost():
    time = Time()
    first = time.clock()
    first.resume(None, None)
    first.begin_steps()
    time.now += 60
    saved = first.state()
    time.now += 30  # steps after the checkpoint, then a kill and a wait
    time.now, time.offset = 0.0, time.offset + time.now  # a new process
    second = time.clock()
    time.now += 10
    second.resume(saved, None)
    second.begin_steps()
    time.now += 20
    assert second.goodput() == pytest.approx((60 + 20) / (60 + 30 + 10 + 20))
    assert second.state()["wall_s"] == pytest.approx(120)


def test_run_killed_before_its_first_checkpoint_has_lost_that_time():
    time = Time(wall=5000.0)
    clock = time.clock()
    time.now += 10
    clock.resume(None, 4900.0)
    clock.begin_steps()
    time.now += 90
    assert clock.goodput() == pytest.approx(90 / 200)


@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e4), st.floats(0, 1e4)), max_size=5))
def test_goodput_is_a_share_wherever_the_wall_clock_goes(processes):
    time, saved = Time(), None
    for jump, preparation, steps in processes:
        time.offset += jump
        clock = time.clock()
        time.now += preparation
        clock.resume(saved, None)
        clock.begin_steps()
        time.now += steps
        assert 0 <= clock.goodput() <= 1
        saved = clock.state()
        assert saved["wall_s"] >= saved["steps_s"] >= 0


def test_steps_have_not_begun():
    time = Time()
    clock = time.clock()
    time.now += 5
    assert clock.goodput() == 0 and clock.state()["wall_s"] == 5
