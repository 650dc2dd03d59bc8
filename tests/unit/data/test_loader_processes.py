"""A loader process that is killed is named, with its signal and the likely cause."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from modality_forcing import signals
from modality_forcing.data.loader_processes import LoaderProcesses, ignore_signals
from modality_forcing.data.pipeline import train_batches
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.errors import WorkerDied
from modality_forcing.synthetic.source import Scenes


def test_killed_loader_is_one_line_and_interrupts_are_ignored():
    source = Scenes(seed=0, count=8, resolution=16, split="train")
    text = HashedWordTokenizer(3, 16)
    before = {child.pid for child in multiprocessing.active_children()}
    iterator = train_batches(source, text, batch=4, seed=0, resolution=16, workers=1)
    next(iterator)
    (pid,) = {child.pid for child in multiprocessing.active_children()} - before
    os.kill(pid, signal.SIGINT)
    for _ in range(8):
        next(iterator)
    os.kill(pid, signal.SIGKILL)
    named = rf"loader process 1 of 1 \(pid {pid}\) was killed by SIGKILL.*memory runs out; lower"
    with pytest.raises(WorkerDied, match=named):
        for _ in range(20):
            next(iterator)
            time.sleep(0.01)
    assert {child.pid for child in multiprocessing.active_children()} <= before


def test_other_errors_are_not_deaths():
    assert LoaderProcesses().death(ValueError("damaged")) is None


def test_loaders_ignore_signals():
    numbers = (signal.SIGINT, *signals.SIGNALS)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        ignore_signals(0, 1)
        assert {signal.getsignal(number) for number in numbers} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
