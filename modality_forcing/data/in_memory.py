"""Keeps records in memory once they are read."""

from __future__ import annotations

from dataclasses import dataclass, field

from modality_forcing.data.records import Record, RecordSource


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
        size = _num_bytes(record)
        # Two threads may read one record at once. Counting it twice only ends the caching early.
        if self._bytes[0] + size <= self.megabytes * 2**20:
            self._records[index] = record
            self._bytes[0] += size
        return record

    def __reduce__(self) -> tuple[type[InMemory], tuple[RecordSource, float]]:
        return InMemory, (self.source, self.megabytes)  # sending the records would take longer


def _num_bytes(record: Record) -> int:
    arrays = (record.image, record.depth, record.valid, record.intrinsics)
    texts = sum(map(len, (record.caption, *record.other_captions)))
    python_objects = 1024
    return sum(array.nbytes for array in arrays) + texts + python_objects
