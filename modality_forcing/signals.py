"""Signals that end a command: an exception, or a flag that a training loop looks at.

SIGTERM (a preemption), SIGUSR1 (SLURM's notice of the time limit) and SIGHUP (a lost terminal) end
a command as Ctrl-C does, with exit code 143, on which launchers restart it. Ctrl-C has 130. A
signal that was ignored when Python started, as under nohup, stays ignored.

Python raises an exception wherever the main thread happens to be. Inside a callback of the garbage
collector, such as jax's, or a finalizer, it is printed as "Exception ignored" and lost. Elsewhere a
library catches everything, or clears errors in C. Then the exception is freed while the command
goes on. In both cases the signal is sent again. The same is done while an extension module is being
imported: its C code would abort the process or report another error.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import TYPE_CHECKING

from modality_forcing.progress import LossyStream, print_stderr

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

STOPPED, INTERRUPTED = 143, 130  # exit codes
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_AGAIN_AFTER = 0.05  # seconds, in which the callback ends
# Some send a signal twice, such as timeout(1), to a process and to its group. The second one must
# not break off the cleanup.
_REPEATED_WITHIN = 5.0  # seconds


class StopRequest(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
      number: of the signal.
      agreed: whether all processes of the run end at this point.
      resumes: whether there is anything left to do.
      when_freed: called with the number if nobody holds the exception any more.
    """

    when_freed: Callable[[int], None] | None = None

    def __init__(
        self, number: int, message: str = "", *, agreed: bool = False, resumes: bool = True
    ):
        super().__init__(message or f"stopped by {name(number)}")
        self.number, self.agreed, self.resumes = number, agreed, resumes

    def __del__(self) -> None:
        if self.when_freed is not None:
            self.when_freed(self.number)


def exit_code(error: KeyboardInterrupt) -> int:
    """Returns the exit code of a command that was asked to end."""
    number = getattr(error, "number", signal.SIGINT)
    return INTERRUPTED if number == signal.SIGINT else STOPPED


@dataclass
class StopFlag:
    """Which signal asked to stop."""

    signal: int | None = None  # its number


@contextmanager
def stop_flag(notify: Callable[[], None] | None = None) -> Iterator[StopFlag]:
    """Collects signals in a flag. A Ctrl-C after another signal ends the process at once.

    A thread receives them, so that this holds while the main thread compiles or waits. Outside the
    main thread, where Python handles no signals, nothing changes.

    notify: called in that thread at the first signal.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    every = (signal.SIGINT, *SIGNALS)
    heeded = [number for number in every if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in heeded}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    thread = threading.Thread(target=_receive, args=(reading, flag, heeded, notify), daemon=True)
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


def _receive(
    reading: int, flag: StopFlag, signals: Sequence[int], notify: Callable[[], None] | None
) -> None:
    while content := os.read(reading, 1):
        number = content[0]
        if number not in signals:
            continue
        if flag.signal is not None:
            if number == signal.SIGINT:
                os._exit(INTERRUPTED)
            continue
        _prepare_output(number)
        flag.signal = number
        if notify is not None:
            notify()
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        with suppress(OSError):  # the terminal may be gone
            print_stderr(f"{name(number)}: stopping after this step{again}")


def leave_on_signals() -> None:
    """Ends the process with one line at a signal: for the start of a program, while it imports."""

    def leave(number: int, frame: FrameType | None) -> None:
        what = "interrupted" if number == signal.SIGINT else f"stopped by {name(number)}"
        with suppress(OSError):
            os.write(2, f"mforce: {what}\n".encode())
        os._exit(INTERRUPTED if number == signal.SIGINT else STOPPED)

    for number in (signal.SIGINT, *SIGNALS):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, leave)


@contextmanager
def raise_on_signals() -> Iterator[None]:
    """Raises StopRequest in the main thread at a signal, also where it was lost at first.

    Those after the first are ignored while its exception ends the command, but for Ctrl-C.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    raised_at = -_REPEATED_WITHIN

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal raised_at
        if _in_extension(frame):
            _send_again(number, lambda: is_open)
        elif number == signal.SIGINT or time.monotonic() - raised_at >= _REPEATED_WITHIN:
            raised_at = time.monotonic()
            _prepare_output(number)
            # In no variable of this frame, which the traceback of the exception holds.
            raise request(number)

    def request(number: int) -> StopRequest:
        made = StopRequest(number, "interrupted" if number == signal.SIGINT else "")
        made.when_freed = lost
        return made

    def lost(number: int) -> None:
        nonlocal raised_at
        if is_open:
            raised_at = -_REPEATED_WITHIN
            _send_again(number, lambda: is_open)

    is_open = True
    every = (signal.SIGINT, *SIGNALS)
    heeded = [number for number in every if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        with resend_lost_interrupts():
            yield
    finally:
        is_open = False
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def resend_lost_interrupts() -> Iterator[None]:
    """Sends the signal again where its exception was printed and ignored."""
    before, is_open = sys.unraisablehook, True

    def hook(raised: UnraisableHookArgs) -> None:
        if not issubclass(raised.exc_type, KeyboardInterrupt):
            before(raised)
            return
        if getattr(raised.exc_value, "when_freed", None) is None:  # else it is sent again then
            number = getattr(raised.exc_value, "number", signal.SIGINT)
            _send_again(number, lambda: is_open)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        is_open = False
        if sys.unraisablehook is hook:  # the one of a failed read of a checkpoint stays to the end
            sys.unraisablehook = before


def _in_extension(frame: FrameType | None) -> bool:
    """Returns whether an extension module is being imported in a frame or around it."""
    while frame is not None:
        is_loader = frame.f_code.co_name in ("create_module", "exec_module")
        if is_loader and isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def _send_again(number: int, is_heeded: Callable[[], bool]) -> None:
    """Sends a signal to this process a moment later, if it is still heeded then.

    After that, the default of most signals would end the process.
    """

    def send() -> None:
        time.sleep(_AGAIN_AFTER)
        if is_heeded():
            os.kill(os.getpid(), number)

    # threading.Thread takes a lock that the interrupted code may hold.
    _thread.start_new_thread(send, ())


def behind(error: BaseException | None) -> KeyboardInterrupt | None:
    """Returns the request to stop that another error was raised for or instead of, if any."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def settled() -> Iterator[None]:
    """Lets an exception that leaves this context be freed: it ends the command."""
    try:
        yield
    except BaseException as error:
        request = behind(error)
        if isinstance(request, StopRequest):
            request.when_freed = None
        raise


@contextmanager
def blocked(when: bool = True) -> Iterator[None]:
    """Starts processes that receive none of the signals: they inherit this thread's mask.

    Other threads of this process still receive them. when: whether to do anything.
    """
    if not when:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *SIGNALS))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(numbers: Sequence[int] = (signal.SIGINT, *SIGNALS)) -> None:
    """Ignores signals in a worker process, which its main process ends."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def _prepare_output(number: int) -> None:
    # The reader of the output, such as tee, received SIGHUP as well. The state must still be saved.
    if number == signal.SIGHUP:
        LossyStream.outlives_reader = True


def name(number: int) -> str:
    """Returns the name of a signal for a person."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name
