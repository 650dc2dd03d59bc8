"""The next batches, fetched and put on devices while the last one is computed with."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Batches(Protocol):
    """What batches are taken from: `data.pipeline.BatchIterator`, which says what each of these does."""

    def __next__(self) -> Any: ...
    def told(self) -> dict[str, float]: ...
    def get_state(self) -> dict[str, int]: ...
    def set_state(self, state: Mapping[str, int]) -> None: ...


class Ahead:
    """Batches that `put` has already brought where they are wanted, such as onto devices: `depth` of them wait there.

    A thread takes the next batches and puts them while the caller computes. State, order and errors are those of the
    batches beneath; a batch that waits counts as not delivered. Memory for `depth` more batches is taken on both sides.
    """

    def __init__(self, batches: Batches, put: Callable[[Any], Any], depth: int = 2):
        self._batches = batches
        self._put = put
        self._depth = depth
        self._state = batches.get_state()
        self._waiting: deque[Future[Any]] = deque()
        self._thread: ThreadPoolExecutor | None = None

    def __iter__(self) -> Ahead:
        return self

    def __next__(self) -> Any:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(
                1, thread_name_prefix="ahead"
            )  # one: two would take batches out of order
        while len(self._waiting) < self._depth:
            self._waiting.append(self._thread.submit(lambda: self._put(next(self._batches))))
        try:
            batch = self._waiting.popleft().result()
        except BaseException:
            self.close()
            raise
        self._waiting.append(self._thread.submit(lambda: self._put(next(self._batches))))
        self._state = {"batches": self._state["batches"] + 1}
        return batch

    def told(self) -> dict[str, float]:
        """Returns what the batches taken since the last call were like; the wait is the thread's, not the caller's."""
        return self._batches.told()

    def get_state(self) -> dict[str, int]:
        """Returns how many batches were delivered."""
        return dict(self._state)

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on after the batches of a saved state; raises UserError if it is none."""
        self.close()
        self._batches.set_state(state)
        self._state = dict(state)

    def close(self) -> None:
        """Ends the thread and the loader; a later `next` starts them again where the caller left off."""
        if self._thread is not None:
            self._thread.shutdown(wait=True, cancel_futures=True)
            self._thread = None
        self._waiting.clear()
        self._batches.set_state(self._state)
