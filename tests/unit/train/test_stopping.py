"""Where a run ends or saves by the clock (e2e/test_resume.py: that it resumes to the bit)."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

from modality_forcing import distributed, preemption, signals
from modality_forcing.progress import LossyStream
from modality_forcing.train import stopping
from modality_forcing.train.stopping import ASK_EVERY, READ_AFTER, SaveClock, Stopping


@pytest.fixture(autouse=True)
def _streams(monkeypatch):
    """Restores what SIGHUP changes for the rest of a process."""
    monkeypatch.setattr(LossyStream, "outlives_reader", False)


def send(number: int, stop: Stopping) -> None:
    os.kill(os.getpid(), number)
    end = time.monotonic() + 5
    while stop._flag.signal is None and time.monotonic() < end:
        time.sleep(0.001)


@pytest.mark.parametrize(
    ("number", "code", "name"),
    [
        (signal.SIGTERM, 143, "SIGTERM"),
        (signal.SIGHUP, 143, "SIGHUP"),
        (signal.SIGUSR1, 143, "SIGUSR1"),
        (signal.SIGINT, 130, "Ctrl-C"),
    ],
)
def test_signal_ends_a_run_with_its_exit_code(number, code, name):
    with signals.stop_flag(notify=preemption.notify) as flag:
        stop = Stopping(flag)
        assert not stop.reached()
        stop.finish()
        send(number, stop)
        assert stop.reached()
        with pytest.raises(signals.StopRequest) as ended:
            stop.end(7, saved=True)
        with pytest.raises(signals.StopRequest, match="but the run is complete"):
            stop.finish()
    assert signals.exit_code(ended.value) == code
    assert str(ended.value) == f"stopped by {name} at step 7, which is saved"


@pytest.fixture
def several(monkeypatch) -> list[int]:
    """Makes this the second of two processes; what the other one brings to an agreement."""
    theirs = [0]
    monkeypatch.setattr(distributed, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    monkeypatch.setattr(
        stopping.multihost_utils, "process_allgather", lambda own: np.array([theirs[0], int(own)])
    )
    return theirs


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        (0, 0, 143),  # the notice of the cloud, not a signal
        (signal.SIGTERM, 0, 143),
        (0, signal.SIGUSR1, 143),
        (signal.SIGINT, signal.SIGTERM, 130),
        (0, signal.SIGINT, 130),
    ],
)
def test_processes_agree_on_step_and_exit_code(several, monkeypatch, ours, theirs, code):
    noticed: list[int] = []
    monkeypatch.setattr(preemption, "notify", lambda: noticed.append(1))
    monkeypatch.setattr(preemption, "reached", lambda: bool(noticed or theirs))
    several[0] = theirs
    with signals.stop_flag(notify=preemption.notify) as flag:
        stop = Stopping(flag)
        if ours:
            send(ours, stop)
        assert stop.reached() == bool(ours or theirs)
        with pytest.raises(signals.StopRequest, match="before the first step") as ended:
            stop.end(0, saved=False)
    assert signals.exit_code(ended.value) == code and ended.value.agreed
    assert len(noticed) == bool(ours)


class Time:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(stopping.time, "monotonic", lambda: self.now)


def test_clock_is_due_after_the_minutes_and_after_each_restart(monkeypatch):
    clock_time = Time(monkeypatch)
    clock = SaveClock(0.5)
    for _ in range(2):
        assert not clock.is_due(1)
        clock_time.now += 29
        assert not clock.is_due(2)
        clock_time.now += 1
        assert clock.is_due(3)
        clock.restart()


def test_clock_of_zero_minutes_is_never_due(monkeypatch):
    clock_time = Time(monkeypatch)
    clock = SaveClock(0.0)
    clock_time.now += 1e9
    assert not any(clock.is_due(k) for k in range(20))


@pytest.mark.parametrize("primary", [True, False])
def test_several_processes_follow_the_clock_of_the_first(several, monkeypatch, primary):
    monkeypatch.setattr(distributed, "is_primary", lambda: primary)
    clock_time = Time(monkeypatch)
    clock = SaveClock(1.0)
    assert not any(clock.is_due(k) for k in range(7, ASK_EVERY + READ_AFTER + 1))
    clock_time.now += 61
    due = [k for k in range(ASK_EVERY + READ_AFTER + 1, 4 * ASK_EVERY) if clock.is_due(k)]
    # This process is alone on its devices: it hears its own answer only if it is the first.
    expected = [2 * ASK_EVERY + READ_AFTER, 3 * ASK_EVERY + READ_AFTER] if primary else []
    assert due == expected


def test_answer_is_that_of_any_device():
    assert bool(stopping._from_first(True)) and not bool(stopping._from_first(False))
