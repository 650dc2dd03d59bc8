"""Ctrl-C that is never lost: a flag that a loop looks at, or an exception that is sent again.

Python raises KeyboardInterrupt wherever the main thread happens to be. Inside a callback of the
garbage collector, such as jax's, or a finalizer, it is printed as "Exception ignored" and lost.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from modality_forcing.progress import print_stderr

_AGAIN_AFTER = 0.05  # seconds, in which the callback ends


class StopFlag:
    """Which signal asked to stop.

    Attributes:
      signal: its number, None so far.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def check(self) -> None:
        """Raises KeyboardInterrupt once Ctrl-C was pressed."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt


@contextmanager
def stop_flag(signals: Sequence[int] = (signal.SIGINT,)) -> Iterator[StopFlag]:
    """Collects signals in a flag. The second one ends the process at once, with 128 + its number.

    A thread receives them, so that this holds while the main thread compiles or waits. Outside the
    main thread, where Python handles no signals, nothing changes.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_receive, args=(reading, flag, signals), daemon=True)
    thread.start()
    try:
        yield flag
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writing)
        thread.join()
        os.close(reading)


def _receive(reading: int, flag: StopFlag, signals: Sequence[int]) -> None:
    while content := os.read(reading, 1):
        number = content[0]
        if number not in signals:
            continue
        if flag.signal is not None:
            os._exit(128 + number)
        flag.signal = number
        again = "press Ctrl-C again" if number == signal.SIGINT else "send it again"
        print_stderr(f"stopping after this step; {again} to stop at once")


@contextmanager
def resend_lost_interrupts() -> Iterator[None]:
    """Sends SIGINT again where its KeyboardInterrupt was ignored."""
    before = sys.unraisablehook

    def hook(raised: Any) -> None:  # sys.UnraisableHookArgs, a name for type checkers only
        if not issubclass(raised.exc_type, KeyboardInterrupt):
            before(raised)
            return
        again = threading.Timer(_AGAIN_AFTER, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        if sys.unraisablehook is hook:  # the one of a failed read of a checkpoint stays to the end
            sys.unraisablehook = before
