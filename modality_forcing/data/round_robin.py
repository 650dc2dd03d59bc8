"""Several sources as one, in turns: for looking at all of them, where a mixture by weight is for training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modality_forcing.data.records import Record, RecordSource


@dataclass(frozen=True)
class Alternating:
    """As many records of each source as the shortest has, one of each in turn, so that any first few are of all."""

    sources: Sequence[RecordSource]

    def __len__(self) -> int:
        return len(self.sources) * min(len(source) for source in self.sources)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        turn, number = divmod(index, len(self.sources))
        return self.sources[number][turn]
