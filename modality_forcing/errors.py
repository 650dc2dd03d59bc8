"""The exceptions that the command line prints as one line."""

from __future__ import annotations

import signal


class UserError(Exception):
    """A mistake of the user in one line: what is wrong, where, and how to fix it."""

    exit_code = 2  # launchers do not retry it

    def __init__(self, what: str, *, where: object = None, hint: str = ""):
        parts = [what if where is None else f"{where}: {what}"]
        if hint:
            parts.append(hint)
        super().__init__("; ".join(" ".join(str(part).split()) for part in parts))


class StorageFailed(UserError):
    """A bucket did not do what was asked, for a cause that may pass."""

    exit_code = 1  # launchers retry it


class WorkerDied(UserError):
    """A worker process died, perhaps from a passing cause."""

    exit_code = 1  # launchers retry it

    def __init__(self, name: str, exit_code: int, *, hint: str):
        """exit_code: negative for a signal, as in multiprocessing. hint: if memory ran out."""
        cause = f"ended with exit code {exit_code}"
        advice = "its own error is printed above"
        if exit_code < 0:
            advice, number = f"{hint}; the same command resumes", -exit_code
            known = number in signal.valid_signals()
            cause = f"was killed by {signal.Signals(number).name if known else f'signal {number}'}"
        if exit_code == -signal.SIGKILL:
            cause += ", as the system does when memory runs out"
        elif exit_code == -signal.SIGBUS:
            cause += ", as the system does when shared memory is full"
        super().__init__(f"{name} {cause}", hint=advice)
