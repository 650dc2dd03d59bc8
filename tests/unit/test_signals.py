"""Ctrl-C reaches the program wherever it arrives, and the second one ends it at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from modality_forcing import signals
from tests.runs import environment

# The interrupt arrives inside a callback of the garbage collector, where jax has one too.
LOST = """
import gc, os, signal, time
from contextlib import nullcontext
from modality_forcing import signals

def callback(phase, info):
    if phase == "start":
        gc.callbacks.remove(callback)
        os.kill(os.getpid(), signal.SIGINT)
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


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )


def test_interrupt_lost_in_a_callback_is_sent_again():
    lost = run(LOST.format(context="nullcontext()", steps=10))
    assert "went on" in lost.stdout and "Exception ignored" in lost.stderr  # what Python does
    mended = run(LOST.format(context="signals.resend_lost_interrupts()", steps=1000))
    assert "went on" not in mended.stdout and mended.stderr.rstrip().endswith("KeyboardInterrupt")


def test_flag_is_set_and_handlers_are_restored(capsys):
    handler = signal.getsignal(signal.SIGINT)
    with signals.stop_flag((signal.SIGINT, signal.SIGUSR1)) as stop:
        stop.check()
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(lambda: stop.signal is not None)
        assert stop.signal == signal.SIGUSR1
        stop.check()  # not Ctrl-C
    with signals.stop_flag() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        wait_for(lambda: stop.signal is not None)
        with pytest.raises(KeyboardInterrupt):
            stop.check()
    assert signal.getsignal(signal.SIGINT) is handler
    assert signal.set_wakeup_fd(-1) == -1
    assert "press Ctrl-C again to stop at once" in capsys.readouterr().err


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
