"""Reads many records of a source by several processes, which send them as stacked arrays."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import fields
from itertools import islice

import numpy as np

from modality_forcing.data.records import Record, RecordSource, read_many
from modality_forcing.data.worker_pool import death, start_worker
from modality_forcing.errors import UserError

PER_TASK = 256  # records that a process reads and sends at once
_NAMES = tuple(field.name for field in fields(Record))
_SOURCE: list[RecordSource] = []  # of a worker process
_Numbered = list[tuple[int, Record]]
_Columns = list[np.ndarray | list[object]]  # by field of a record, of all records


def read_parallel(
    source: RecordSource, indices: Sequence[int], workers: int
) -> Generator[_Numbered, None, None]:
    """Yields records with their indices, in order, up to PER_TASK at a time.

    Records that cannot be read are left out. One worker, or few records, need no process but this
    one. Closing the iterator ends the processes. Raises WorkerDied if one of them dies.
    """
    tasks = [indices[at : at + PER_TASK] for at in range(0, len(indices), PER_TASK)]
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from (_read(source, task) for task in tasks)
        return
    others = multiprocessing.active_children()
    context = multiprocessing.get_context("spawn")  # forking a process with threads is unsafe
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(source,))
    processes = []
    try:
        left = iter(tasks)
        waiting: deque[Future[tuple[list[int], _Columns]]] = deque()
        while True:
            for task in islice(left, 2 * workers - len(waiting)):  # few, as all wait in memory
                waiting.append(pool.submit(_read_stacked, task))
            if not waiting:
                return
            started = multiprocessing.active_children()
            processes = processes or [child for child in started if child not in others]
            yield _unstack(*waiting.popleft().result())
    except BrokenProcessPool as error:
        raise death(processes, hint="give the machine more memory") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(source: RecordSource) -> None:
    start_worker()
    _SOURCE.append(source)


def _read(source: RecordSource, indices: Sequence[int]) -> _Numbered:
    try:
        return list(zip(indices, read_many(source, indices), strict=True))
    except UserError:
        records = []
        for index in indices:
            with suppress(UserError):
                records.append((index, source[index]))
        return records


def _read_stacked(indices: Sequence[int]) -> tuple[list[int], _Columns]:
    found = _read(_SOURCE[0], indices)
    columns = [_stack([getattr(record, name) for _, record in found]) for name in _NAMES]
    return [index for index, _ in found], columns


def _stack(values: list[object]) -> np.ndarray | list[object]:
    """Returns one array of all values if they are arrays of one shape and type."""
    arrays = [x for x in values if isinstance(x, np.ndarray)]
    alike = len(arrays) == len(values) and len({(x.shape, x.dtype) for x in arrays}) == 1
    return np.stack(arrays) if alike else values


def _unstack(indices: list[int], columns: _Columns) -> _Numbered:
    rows = zip(*columns, strict=True)
    return [(index, Record(*row)) for index, row in zip(indices, rows, strict=True)]
