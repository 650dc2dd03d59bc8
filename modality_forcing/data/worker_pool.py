"""What all pools of worker processes have in common: signals, and the death of a worker."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

from modality_forcing import signals
from modality_forcing.errors import WorkerDied

_SIGNAL_WITHIN = 0.2  # seconds


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS


def start_worker() -> None:
    """Prepares a worker process: its parent alone ends it, and it does not outlive its parent."""
    # These may reach all processes; the parent stops its workers. The pool ends them by SIGTERM.
    signals.ignore([n for n in (signal.SIGINT, *signals.SIGNALS) if n != signal.SIGTERM])
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A parent that was killed cannot end its workers, which would wait forever.
    threading.Thread(target=lambda: (wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def death(workers: Sequence[BaseProcess], *, hint: str) -> WorkerDied:
    """Returns the error for a broken pool. hint: what to do if memory ran out.

    Waits a moment first: the pool ends the others, and if SIGTERM was sent to all processes,
    StopRequest is raised.
    """
    time.sleep(_SIGNAL_WITHIN)
    codes = [code for worker in workers if (code := worker.exitcode)]
    first = [code for code in codes if code != -signal.SIGTERM]  # which the pool sends the others
    code = (first or codes or [1])[0]
    return WorkerDied("a worker process", code, hint=hint)
