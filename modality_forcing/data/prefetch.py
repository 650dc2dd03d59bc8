"""Fetches the next batches and copies them to devices while the current one is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from modality_forcing.data.pipeline import Batch, BatchIterator

_Device = TypeVar("_Device")


class PrefetchToDevice(Generic[_Device]):
    """Applies `put`, such as a copy to devices, to batches in a thread; keeps `depth` ready.

    Order, state and errors are those of the underlying batches; a batch counts as delivered when
    the caller gets it. Takes memory for `depth` more batches on host and device.
    """

    def __init__(self, batches: BatchIterator, put: Callable[[Batch], _Device], depth: int = 2):
        self._batches = batches
        self._next = lambda: put(next(batches))
        self._depth = depth
        self._state = batches.get_state()
        self._ready: deque[Future[_Device]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def __iter__(self) -> PrefetchToDevice[_Device]:
        return self

    def __next__(self) -> _Device:
        if self._thread is None:  # a single thread: two would take batches out of order
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        while len(self._ready) < self._depth:
            self._ready.append(self._thread.submit(self._next))
        try:
            batch = self._ready.popleft().result()
        except BaseException:
            self.close()
            raise
        self._ready.append(self._thread.submit(self._next))
        self._state = {"batches": self._state["batches"] + 1}
        return batch

    def pop_stats(self) -> dict[str, float]:
        """Returns the loader's statistics since the last call; its waits are the thread's."""
        return self._batches.pop_stats()

    def records(self, number: int) -> dict[str, list[int]]:
        """Returns the numbers of the records of a batch, by their source."""
        return self._batches.records(number)

    def get_state(self) -> dict[str, int]:
        """Returns the number of delivered batches."""
        return dict(self._state)

    def set_state(self, state: Mapping[str, int]) -> None:
        """Continues after the batches of a saved state; raises UserError if it is not a state."""
        self.close()
        self._batches.set_state(state)
        self._state = dict(state)

    def close(self) -> None:
        """Stops the thread and the loader; a later `next` continues after the last batch."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None
        self._ready.clear()
        self._batches.set_state(self._state)
