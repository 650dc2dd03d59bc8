"""Keeps records in memory once they are read, and reads them ahead by several processes."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from modality_forcing.data.parallel_reading import read_parallel
from modality_forcing.data.records import Record, RecordSource
from modality_forcing.data.worker_pool import available_cores
from modality_forcing.progress import ProgressMeter


@dataclass(frozen=True)
class InMemory:
    """A source that reads each record of another once, as long as they fit into `megabytes`.

    Nothing is evicted: in a random order of epochs, an evicted record is needed again before the
    one it made room for. Each loader process keeps its own records.
    """

    source: RecordSource
    megabytes: float = 1024
    _records: dict[int, Record] = field(default_factory=dict, init=False, repr=False, compare=False)
    _bytes: list[int] = field(default_factory=lambda: [0], init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        if (kept := self._records.get(index)) is not None:
            return kept
        record = self.source[index]
        self._keep(index, record)
        return record

    def fill(self, workers: int | None = None) -> None:
        """Reads the records that are not in memory, in order, until they do not fit any more.

        Those that cannot be read are left to raise their error when they are needed. Reports the
        rate and the remaining time on stderr. Raises WorkerDied if a process dies.

        workers: processes that read; by default, as many as this one may use cores.
        """
        missing = [index for index in range(len(self)) if index not in self._records]
        workers = available_cores() if workers is None else workers
        meter = ProgressMeter("records into memory", len(missing), every=5.0)
        done, parts = 0, read_parallel(self.source, missing, workers)
        with closing(parts):
            for part in parts:
                kept = [self._keep(index, record) for index, record in part]
                done += len(part)
                meter.update(done)
                if not all(kept):
                    break
        if missing:
            meter.report(done)
            meter.close()

    def fill_for(self, examples: int) -> None:
        """Fills the memory if a run of this many examples needs every record.

        Reading one by one, training would wait for each.
        """
        if examples >= len(self):
            self.fill()

    def _keep(self, index: int, record: Record) -> bool:
        """Returns whether there was memory left for the record."""
        size = _num_bytes(record)
        # Two threads may read one record at once. Counting it twice only ends the caching early.
        if self._bytes[0] + size > self.megabytes * 2**20:
            return False
        self._records[index] = record
        self._bytes[0] += size
        return True

    def __reduce__(self) -> tuple[type[InMemory], tuple[RecordSource, float]]:
        return InMemory, (self.source, self.megabytes)  # sending the records would take longer


def _num_bytes(record: Record) -> int:
    arrays = sum(x.nbytes for x in vars(record).values() if isinstance(x, np.ndarray))
    texts = sum(map(len, (record.caption, *record.other_captions)))
    python_objects = 1024
    return arrays + texts + python_objects
