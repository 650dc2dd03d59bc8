"""A profile of some steps, as jax's profiler writes it for xprof.

clu's periodic profiler is not used: importing it needs TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
from jaxtyping import PyTree

from modality_forcing import distributed
from modality_forcing.errors import UserError
from modality_forcing.mirror import Mirror
from modality_forcing.progress import print_stderr

_FORM = "FROM:COUNT, or FROM:COUNT:all for all processes"


@dataclass(frozen=True)
class ProfileWindow:
    """The steps to profile: `count` of them, the first after `start` updates."""

    start: int
    count: int
    all_processes: bool = False


def parse_window(text: str) -> ProfileWindow:
    """Parses "FROM:COUNT" or "FROM:COUNT:all"; raises UserError for anything else."""
    start, _, rest = text.partition(":")
    count, colon, who = rest.partition(":")
    numbers = all(n.isascii() and n.isdecimal() and len(n) < 10 for n in (start, count))
    if not numbers or int(count) < 1 or (colon and who != "all"):
        raise UserError(
            f"{text!r} is not a window of steps", where="--profile", hint=f"give {_FORM}"
        )
    return ProfileWindow(int(start), int(count), who == "all")


class Profiler:
    """Writes a profile of a window of steps into `workdir/profile/`.

    A profile that cannot be written is a line on stderr: it does not end the run.
    """

    def __init__(self, window: ProfileWindow | None, workdir: Path):
        is_ours = window is not None and (window.all_processes or distributed.is_primary())
        self._window = window if is_ours else None
        self._folder = workdir / "profile"
        self._mirror: Mirror | None = None

    def before_step(self, step: int, pending: PyTree) -> None:
        """Starts or ends the profile as the step after `step` updates demands.

        pending: results of the steps so far, which are waited for at both ends.
        """
        w = self._window
        if w is None:
            return
        if self._mirror is not None and step >= w.start + w.count:
            self.close(pending)
        elif self._mirror is None and step == w.start:
            jax.block_until_ready(pending)
            self._attempt(self._begin)
        elif self._mirror is None and step > w.start:
            print_stderr(f"--profile: step {w.start} is past; this run is at step {step}")
            self._window = None

    def close(self, pending: PyTree = ()) -> None:
        """Ends a profile that is being taken, and stores it; says if none was taken."""
        if self._mirror is None and self._window is not None:
            print_stderr(f"--profile: step {self._window.start} was not run; no profile")
            self._window = None
        if self._mirror is not None:
            jax.block_until_ready(pending)
            self._attempt(self._end)
            self._mirror = self._window = None

    def _begin(self) -> None:
        self._mirror = Mirror(self._folder)
        jax.profiler.start_trace(str(self._mirror.local))

    def _end(self) -> None:
        assert self._mirror is not None
        try:
            jax.profiler.stop_trace()
        finally:
            self._mirror.close()
        if distributed.is_primary():
            print_stderr(f"--profile: written to {self._folder}")

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # tracing is the backend's own code and raises what it likes
            what = " ".join(str(error).split()) or type(error).__name__
            print_stderr(f"--profile: {self._folder}: no profile ({what[:200]})")
            self._mirror = self._window = None
