"""The stop of a run of several processes: a signal to one of them ends all at the same step.

jax's preemption service brings the processes to agreement. Its notice is SIGTERM, which
`jax.distributed.initialize` catches in C. Other signals stop a run as well, and other commands than
training do not ask the service. Python therefore takes SIGTERM back, and gives the notice itself.
"""

from __future__ import annotations

import ctypes
import signal
import threading

_SIGACTION_SIZE = 512  # bytes, more than any system's struct; it begins with the handler

_catcher: int | None = None  # the address of jax's handler
_calls = 0


def take_sigterm() -> None:
    """Gives SIGTERM back to Python's handler. Call it after `jax.distributed.initialize`.

    Outside the main thread, where Python sets no handlers, SIGTERM stays with jax.
    """
    global _catcher
    if threading.current_thread() is not threading.main_thread():
        return
    action = ctypes.create_string_buffer(_SIGACTION_SIZE)
    if ctypes.CDLL(None).sigaction(int(signal.SIGTERM), None, action) == 0:
        _catcher = ctypes.c_void_p.from_buffer(action).value
    before = signal.getsignal(signal.SIGTERM)  # Python's, whatever C has set since
    signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def notify() -> None:
    """Tells all processes of the run to stop; does nothing in a run of one process."""
    if _catcher:
        ctypes.CFUNCTYPE(None, ctypes.c_int)(_catcher)(int(signal.SIGTERM))


def reached() -> bool:
    """Returns whether all processes of the run stop here.

    The service compares the numbers of calls: all processes must call this at the same points, and
    the point is the next one that no process has passed. A call takes less than a microsecond.
    """
    global _calls
    from jax.experimental import multihost_utils

    _calls += 1  # the first is 1: 0 is where a process stands that has not called yet
    return multihost_utils.reached_preemption_sync_point(_calls)
