"""A source of numbered records, and short batches of it, for tests of the loader."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from modality_forcing.data import pipeline
from modality_forcing.data.augment import Augment
from modality_forcing.data.mixture import MixtureComponent
from modality_forcing.data.records import Record
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.errors import UserError

SPARSE = {"uniform": 1.0}


@dataclass(frozen=True)
class Numbered:
    """Records whose pixels all hold their index, at their own size."""

    length: int
    size: int = 16
    broken: int = -1
    first: int = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        if index == self.broken:
            raise UserError("cannot be read", where=f"{index}.png", hint="replace it")
        shape = (self.size, self.size)
        number = self.first + index
        return Record(
            image=np.full((*shape, 3), number % 256, np.uint8),
            depth=np.full(shape, number + 1, np.float32),
            valid=np.ones(shape, np.bool_),
            intrinsics=np.full((3, 3), np.nan, np.float32),
            unit="relative",
            caption=f"image number {number}",
            source="numbered",
            id=str(index),
        )


MIXED = {  # records 0 to 39, 100 to 105 and 200 to 224, of other sizes; one is sparsified
    "many": MixtureComponent(Numbered(40), 2.0, {"uniform": 1.0}),
    "few": MixtureComponent(Numbered(6, size=24, first=100), 1.0),
    "rare": MixtureComponent(Numbered(25, size=20, first=200), 0.2),
}
MOVED = Augment(crop_range=(0.5, 1), crop_jitter=1, flip_prob=0.5)


def batches(
    source: Numbered | dict[str, MixtureComponent] = Numbered(100), **changes
) -> pipeline.BatchIterator:
    options = {"batch": 8, "seed": 3, "resolution": 16, "sparsity": SPARSE, **changes}
    if isinstance(source, dict):
        options["sparsity"] = None
    return pipeline.train_batches(source, HashedWordTokenizer(), **options)


def take(iterator: pipeline.BatchIterator, count: int) -> list[pipeline.Batch]:
    taken = [next(iterator) for _ in range(count)]
    iterator.close()
    return taken
