"""Records read by several processes are those of one, in order; a killed process is named."""

from __future__ import annotations

import multiprocessing
import os
import signal
from dataclasses import astuple

import numpy as np
import pytest

from modality_forcing.data import parallel_reading
from modality_forcing.data.parallel_reading import read_parallel
from modality_forcing.errors import WorkerDied
from modality_forcing.synthetic.source import Scenes


def test_processes_send_the_same_records_until_one_is_killed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel_reading, "PER_TASK", 3)
    source, indices = Scenes(resolution=8), range(900, 0, -1)
    before = multiprocessing.active_children()
    parts = read_parallel(source, indices, workers=2)
    for start in (0, 3):
        part = next(parts)
        assert [index for index, _ in part] == [*indices[start : start + 3]]
        assert part[0][1].image.base is part[1][1].image.base  # one array was sent
        for index, record in part:
            for one, other in zip(astuple(record), astuple(source[index]), strict=True):
                np.testing.assert_array_equal(one, other)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    assert len(workers) == 2 and workers[1].pid
    os.kill(workers[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="a worker process was killed by SIGKILL"):
        list(parts)
    assert not any(worker.is_alive() for worker in workers)
