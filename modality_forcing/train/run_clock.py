"""Where the time of a run goes: in steps, and in all else since it began, restarts included."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class RunClock:
    """Measures steps, and the share of a run's wall time that they take.

    Time between processes counts as lost, and so do steps that a killed process did after its last
    checkpoint: a checkpoint holds the seconds up to itself. Within a process only a monotonic clock
    is read. Between processes it is the wall clock; if that was set back, no time is between them.

    Args:
      monotonic, wall: functions that return seconds.

    Attributes:
      data_wait_s: seconds for which the devices waited for data, in this process.
      compile_s: seconds of the first step's compilation.
    """

    def __init__(
        self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ):
        self._monotonic, self._wall = monotonic, wall
        self._began = monotonic()  # of this process
        self._earlier_s = self._earlier_steps_s = 0.0  # of those before it
        self._steps_began: float | None = None
        self._outside_s = 0.0  # between steps, since the first one
        self.data_wait_s = self.compile_s = 0.0
        self._window = (self._began, 0.0, 0.0)

    def resume(self, saved: Mapping[str, float] | None, began_unix_s: float | None) -> None:
        """Adds the time before this process.

        Args:
          saved: what `state` returned, from the checkpoint.
          began_unix_s: when the run began, used if it was killed before its first checkpoint.
        """
        if saved is not None:
            self._earlier_s, self._earlier_steps_s = saved["wall_s"], saved["steps_s"]
            began_unix_s = saved["unix_s"]
        if began_unix_s is not None:
            here = self._monotonic() - self._began
            self._earlier_s += max(self._wall() - here - began_unix_s, 0.0)

    def state(self) -> dict[str, float]:
        """Returns the seconds up to now, for a checkpoint."""
        wall_s, steps_s = self._totals()
        return {"wall_s": wall_s, "steps_s": steps_s, "unix_s": self._wall()}

    def begin_steps(self) -> None:
        """Marks the end of the preparations: steps follow."""
        self._steps_began = self._monotonic()
        self._window = (self._steps_began, self._outside_s + self.compile_s, self.data_wait_s)

    @contextmanager
    def outside_steps(self) -> Iterator[None]:
        """Excludes the time inside, such as that of a save."""
        before = self._monotonic()
        try:
            yield
        finally:
            self._outside_s += self._monotonic() - before

    def end_window(self) -> tuple[float, float]:
        """Returns the seconds in steps since the last call, and the share of waiting for data."""
        now, outside = self._monotonic(), self._outside_s + self.compile_s
        began, outside_before, waited_before = self._window
        self._window = (now, outside, self.data_wait_s)
        share = (self.data_wait_s - waited_before) / max(now - began, 1e-9)
        return max(now - began - (outside - outside_before), 0.0), share

    def goodput(self) -> float:
        """Returns the share of the wall time since the run began that was spent in steps."""
        wall_s, steps_s = self._totals()
        return steps_s / max(wall_s, 1e-9)

    def total_data_wait_share(self) -> float:
        """Returns the share of waiting for data since this process began its steps."""
        began = self._began if self._steps_began is None else self._steps_began
        return self.data_wait_s / max(self._monotonic() - began, 1e-9)

    def _totals(self) -> tuple[float, float]:
        """Seconds since the run began, and those in steps that did not wait for data."""
        now, steps_s = self._monotonic(), 0.0
        if self._steps_began is not None:
            lost = self._outside_s + self.compile_s + self.data_wait_s
            steps_s = max(now - self._steps_began - lost, 0.0)
        return self._earlier_s + now - self._began, self._earlier_steps_s + steps_s
