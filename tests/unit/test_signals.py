"""A signal reaches the program wherever it arrives; a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.machinery import ExtensionFileLoader

import pytest

from modality_forcing import signals
from modality_forcing.progress import LossyStream
from tests.runs import environment

# The interrupt arrives inside a callback of the garbage collector, where jax has one too.
LOST = """
import gc, os, signal, time
from contextlib import nullcontext
from modality_forcing import signals

def callback(phase, info):
    if phase == "start":
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.{number})
        for _ in range(1000):
            pass

with {context}:
    gc.callbacks.append(callback)
    gc.collect()
    for _ in range({steps}):
        time.sleep(0.01)
print("went on")
"""

# The main thread is busy in C, as it is while XLA compiles.
BUSY = """
import hashlib
from modality_forcing import signals
with signals.stop_flag():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


ALL = (signal.SIGINT, *signals.SIGNALS)


@pytest.fixture(autouse=True)
def _streams(monkeypatch):
    """Restores what SIGHUP changes for the rest of a process."""
    monkeypatch.setattr(LossyStream, "outlives_reader", False)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )


def test_signal_lost_in_a_callback_is_sent_again():
    lost = run(LOST.format(context="nullcontext()", steps=10, number="SIGINT"))
    assert "went on" in lost.stdout and "Exception ignored" in lost.stderr  # what Python does
    for number, error in (
        ("SIGINT", "StopRequest: interrupted"),
        ("SIGTERM", "StopRequest: stopped by"),
    ):
        code = LOST.format(context="signals.raise_on_signals()", steps=1000, number=number)
        mended = run(code)
        assert "went on" not in mended.stdout
        assert error in mended.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", ALL)
def test_signal_that_a_library_swallows_is_sent_again(number):
    with pytest.raises(signals.StopRequest) as raised, signals.raise_on_signals():
        with suppress(BaseException):
            os.kill(os.getpid(), number)
            time.sleep(5)
        time.sleep(5)
    assert raised.value.number == number


def test_no_signal_is_sent_again_once_nobody_heeds_it():
    """Its default would end the process, which may have finished its work."""
    with signals.raise_on_signals(), pytest.raises(signals.StopRequest):
        os.kill(os.getpid(), signal.SIGUSR1)  # the exception is freed: lost
    got = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    try:
        time.sleep(3 * signals._AGAIN_AFTER)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == []


def test_signal_waits_for_the_start_of_an_extension_module():
    """jaxlib's aborts the process, or reports an ImportError, if Python raises in it."""
    started = []

    class Loader(ExtensionFileLoader):
        def exec_module(self, module):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
            started.append(module)

    with pytest.raises(signals.StopRequest), signals.raise_on_signals():
        Loader("x", "x.so").exec_module(signals)
        time.sleep(5)
    assert started == [signals]


def test_signal_whose_exception_left_the_command_is_not_sent_again():
    with signals.raise_on_signals():
        with suppress(signals.StopRequest), signals.settled():
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)


def test_request_behind_another_error_is_found():
    request = signals.StopRequest(signal.SIGTERM)
    error = ImportError("a library that could not be imported")
    error.__context__ = ValueError()
    error.__context__.__cause__ = request
    assert signals.behind(error) is request and signals.behind(ValueError()) is None


def test_flag_is_set_and_handlers_are_restored(capsys):
    handlers = [signal.getsignal(number) for number in ALL]
    for number, code in ((signal.SIGUSR1, 143), (signal.SIGINT, 130)):
        with signals.stop_flag() as stop:
            assert stop.signal is None
            os.kill(os.getpid(), number)
            wait_for(lambda stop=stop: stop.signal is not None)
        assert stop.signal == number
        assert signals.exit_code(signals.StopRequest(number)) == code
    assert [signal.getsignal(number) for number in ALL] == handlers
    assert signal.set_wakeup_fd(-1) == -1
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "SIGUSR1: stopping after this step",
        "Ctrl-C: stopping after this step; press Ctrl-C again to stop at once",
    ]


def test_repeated_signal_of_a_scheduler_changes_nothing():
    """timeout(1) sends SIGTERM to its child and to the child's group."""
    noticed = []
    with signals.stop_flag(notify=lambda: noticed.append(1)) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: stop.signal is not None)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        assert stop.signal == signal.SIGTERM and noticed == [1]


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_signal_is_an_exception_once(number):
    handler = signal.getsignal(number)
    with signals.raise_on_signals():
        with pytest.raises(signals.StopRequest) as raised:
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the cleanup goes on
        assert str(raised.value) == f"stopped by {signal.Signals(number).name}"
    assert signal.getsignal(number) == handler


def test_ignored_signal_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.raise_on_signals(), signals.stop_flag() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert stop.signal is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_blocked_signals_reach_this_process_but_not_one_started_meanwhile():
    code = "import signal; print(len(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"
    with signals.stop_flag() as stop:
        with signals.blocked():
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            os.kill(os.getpid(), signal.SIGTERM)
        wait_for(lambda: stop.signal is not None)
        assert stop.signal == signal.SIGTERM and done.stdout == f"{len(ALL)}\n"


def test_second_interrupt_ends_a_busy_process_at_once():
    command = [sys.executable, "-c", BUSY]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment(), stdout=pipe, stderr=pipe, text=True) as busy:
        assert busy.stdout is not None and busy.stdout.readline() == "ready\n"
        busy.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert busy.poll() is None
        busy.send_signal(signal.SIGINT)
        try:
            assert busy.wait(timeout=10) == 130
        finally:
            busy.kill()


def test_other_threads_are_left_alone():
    found = []

    def work() -> None:
        with signals.stop_flag() as stop:
            found.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def wait_for(condition) -> None:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


# The reader of the output has received SIGHUP as well, as `| tee log` of a lost terminal has.
HUNG_UP = """
import os, signal, sys, time
from contextlib import redirect_stdout
from modality_forcing import signals
from modality_forcing.progress import LossyStream
stream = LossyStream(sys.stdout)
with redirect_stdout(stream), signals.stop_flag() as stop:
    os.kill(os.getpid(), signal.SIGHUP)
    while stop.signal is None:
        time.sleep(0.01)
    print("x" * 100, flush=True)
os._exit(7)
"""


def test_lost_reader_does_not_break_off_the_save_after_a_hang_up():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", HUNG_UP]
    assert subprocess.run(command, env=environment(), stdout=writing).returncode == 7
    os.close(writing)
