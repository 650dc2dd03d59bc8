"""When a run ends early or saves by the clock: at the same step in all of its processes."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from modality_forcing import distributed, preemption, signals

ASK_EVERY, READ_AFTER = 10, 2  # steps


class Stopping:
    """Ends a run at a step's boundary, once a flag is set.

    In a run of several processes, a signal to one of them ends all. jax's preemption service
    chooses the step: a signal becomes its notice, and every process asks it at every boundary.
    """

    def __init__(self, flag: signals.StopFlag):
        self._flag = flag

    def reached(self) -> bool:
        """Returns whether the run ends here.

        All processes must call this equally often, and the calls must be at equal points: the
        service counts them. It takes no time worth mentioning, since no process waits for another.
        """
        if distributed.process_count() == 1:
            return self._flag.signal is not None
        return preemption.reached()

    def end(self, step: int, *, saved: bool) -> None:
        """Ends the run. All processes call this, and all get the same exit code.

        Raises StopRequest.
        """
        number = self._agreed() or signal.SIGTERM
        message = f"stopped by {signals.name(number)} "
        message += f"at step {step}, which is saved" if saved else "before the first step"
        raise signals.StopRequest(number, message, agreed=True)

    def finish(self) -> None:
        """Raises StopRequest after the last step if any process has received a signal."""
        if number := self._agreed():
            message = f"{signals.name(number)}, but the run is complete"
            raise signals.StopRequest(number, message, agreed=True, resumes=False)

    def _agreed(self) -> int:
        """The signal of any process, Ctrl-C before others; 0 if there is none."""
        number = self._flag.signal or 0
        if distributed.process_count() > 1:
            every = np.ravel(multihost_utils.process_allgather(np.asarray(number)))
            number = signal.SIGINT if signal.SIGINT in every else int(every.max())
        return number


class SaveClock:
    """Says when train.save_every_minutes have passed since the last save, by process 0's clock.

    Process 0 sends it to the others every few steps. None waits for the answer: it is read two
    steps later, when the loop has waited for the step before the question anyway.
    """

    def __init__(self, minutes: float):
        self._seconds = 60 * minutes
        self._answer: jax.Array | None = None
        self.restart()

    def restart(self) -> None:
        """Starts anew after a save."""
        self._start = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Returns whether to save before this step; the same in all processes.

        All processes must call this at every step. They save up to ASK_EVERY + READ_AFTER steps
        later than one process would.
        """
        if not self._seconds:
            return False
        passed = time.monotonic() - self._start >= self._seconds
        if distributed.process_count() == 1:
            return passed
        answer = False
        if step % ASK_EVERY == READ_AFTER and self._answer is not None:
            answer, self._answer = bool(jax.device_get(self._answer)), None
        if step % ASK_EVERY == 0:
            self._answer = _from_first(passed and distributed.is_primary())
        return answer


def _from_first(value: bool) -> jax.Array:
    """Starts to distribute a value that is False in all processes but the first."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("device",))
    by_device, everywhere = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["device"], []))
    values = jax.make_array_from_process_local_data(
        by_device, np.full(jax.local_device_count(), value)
    )
    return _any(everywhere)(values)


@functools.cache
def _any(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(jnp.any, out_shardings=sharding)
