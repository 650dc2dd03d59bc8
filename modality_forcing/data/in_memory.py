"""Keeps records in memory once they are read, for sources that take longer to read than to train on."""

from __future__ import annotations

from dataclasses import dataclass, field

from modality_forcing.data.records import Record, RecordSource


@dataclass(frozen=True)
class Cached:
    """A source that reads each record of another once, as long as the records kept take no more than `megabytes`.

    What does not fit is read anew every time and pushes nothing out: with whole epochs in random order, whatever made
    room would be wanted again before what it made room for. Each loader process keeps records of its own.
    """

    source: RecordSource
    megabytes: float = 1024
    _kept: dict[int, Record] = field(default_factory=dict, init=False, repr=False, compare=False)
    _bytes: list[int] = field(default_factory=lambda: [0], init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        record = self.source[index]
        size = _size(record)
        # Two threads may read one record at once: both are right, and counting it twice only ends the keeping early.
        if self._bytes[0] + size <= self.megabytes * 2**20:
            self._kept[index] = record
            self._bytes[0] += size
        return record

    def __reduce__(self) -> tuple[type[Cached], tuple[RecordSource, float]]:
        return Cached, (
            self.source,
            self.megabytes,
        )  # a loader process starts empty; sending the records would take longer


def _size(record: Record) -> int:
    arrays = (record.image, record.depth, record.valid, record.intrinsics)
    return (
        sum(array.nbytes for array in arrays) + len(record.caption) + 1024
    )  # Python's own objects
