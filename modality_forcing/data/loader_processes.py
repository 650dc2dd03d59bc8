"""The loader's processes: they ignore signals, and are named when one of them dies."""

from __future__ import annotations

import multiprocessing
import re
from multiprocessing.process import BaseProcess

from modality_forcing import signals
from modality_forcing.errors import WorkerDied

_NAME = "grain-"  # how Grain names its processes
_DIED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")  # and reports their death


def ignore_signals(index: int, count: int) -> None:
    """Makes a loader process ignore the signals that stop a command; the main process ends it.

    A terminal and SLURM send them to all processes. index, count: of the process, from Grain.
    """
    signals.ignore()


class LoaderProcesses:
    """The loader processes of one iterator, in the order of their start."""

    def __init__(self) -> None:
        self._others = {child.pid for child in multiprocessing.active_children()}
        self._processes: list[BaseProcess] = []

    def find(self) -> None:
        """Remembers the processes. Call it after the first batch, with which Grain starts them."""
        if not self._processes:
            loaders = [
                child
                for child in multiprocessing.active_children()
                if child.name.startswith(_NAME) and child.pid not in self._others
            ]
            self._processes = sorted(loaders, key=lambda loader: loader.pid or 0)

    def death(self, error: BaseException) -> WorkerDied | None:
        """Returns which process died, and of what, if that is the error that Grain raised."""
        found = _DIED.search(str(error))
        if found is None:
            return None
        name = "a loader process"
        for number, process in enumerate(self._processes, 1):
            if process.exitcode:  # None while it runs
                name = f"loader process {number} of {len(self._processes)} (pid {process.pid})"
        hint = "lower data.workers or train.batch, or give the machine more memory"
        return WorkerDied(name, int(found[1]), hint=hint)
