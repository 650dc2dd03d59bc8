"""SIGTERM goes to Python again after C code has caught it, and C code is still notified."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from jax.experimental import multihost_utils

from modality_forcing import preemption, signals

HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


@pytest.fixture
def noticed(monkeypatch) -> Iterator[list[int]]:
    """Catches SIGTERM in C, as jax does, and returns what the handler received."""
    received: list[int] = []
    handler = HANDLER(received.append)
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    monkeypatch.setattr(preemption, "_catcher", None)
    with signals.raise_on_signals():
        libc.signal(signal.SIGTERM, ctypes.cast(handler, ctypes.c_void_p))
        yield received


def test_python_receives_sigterm_and_gives_the_notice(noticed):
    preemption.take_sigterm()
    with pytest.raises(signals.StopRequest, match="stopped by SIGTERM") as raised:
        os.kill(os.getpid(), signal.SIGTERM)
    raised.value.when_freed = None  # it is not lost
    assert noticed == []
    preemption.notify()
    assert noticed == [signal.SIGTERM]


def test_other_threads_leave_sigterm_where_it_is(noticed):
    thread = threading.Thread(target=preemption.take_sigterm)
    thread.start()
    thread.join()
    preemption.notify()
    assert noticed == []


def test_stop_is_asked_for_by_numbers_from_one_on(monkeypatch):
    """0 is where a process stands that has not asked yet, as jax counts."""
    asked: list[int] = []
    monkeypatch.setattr(preemption, "_calls", 0)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda n: asked.append(n) or n == 3
    )
    assert [preemption.reached() for _ in range(4)] == [False, False, True, False]
    assert asked == [1, 2, 3, 4]


def test_notice_without_a_service_does_nothing(monkeypatch):
    monkeypatch.setattr(preemption, "_catcher", None)
    preemption.notify()
