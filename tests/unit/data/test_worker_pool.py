"""Of a broken pool, the error names what the first worker died of."""

from __future__ import annotations

import os
import signal
from multiprocessing.process import BaseProcess

import pytest

from modality_forcing.data import worker_pool


class Ended(BaseProcess):
    """A process that was never started."""

    def __init__(self, code: int | None):
        self._code = code

    @property
    def exitcode(self) -> int | None:
        return self._code

    def __repr__(self) -> str:
        return f"Ended({self._code})"


@pytest.mark.parametrize(
    ("codes", "named"),
    [
        ((None, -signal.SIGTERM, -signal.SIGKILL), "killed by SIGKILL.*; free memory"),
        ((-signal.SIGTERM,), "killed by SIGTERM"),
        ((None, 3, 0), "ended with exit code 3"),
    ],
)
def test_death_is_of_the_worker_that_the_pool_did_not_end(
    monkeypatch: pytest.MonkeyPatch, codes: tuple[int | None, ...], named: str
):
    monkeypatch.setattr(worker_pool, "_SIGNAL_WITHIN", 0.0)
    workers = [Ended(code) for code in codes]
    with pytest.raises(worker_pool.WorkerDied, match=f"a worker process .*{named}"):
        raise worker_pool.death(workers, hint="free memory")


def test_available_cores_are_those_of_this_process():
    assert 1 <= worker_pool.available_cores() <= (os.cpu_count() or 1)
