"""Records to batches, by Grain: a batch depends on the seed and its number alone, not on workers or restarts."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np
from absl import flags

from modality_forcing.data.records import Record, RecordSource
from modality_forcing.data.resize import fit
from modality_forcing.data.sparse import thin
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.errors import UserError

Batch = dict[str, Any]  # image u8 [b h w 3], depth f32 [b h w], valid bool [b h w], index i32 [b], text {name: [b ...]}

_SHUFFLE, _SPARSE = 0, 1  # names of the random streams: independent of each other for one seed


def example(record: Record, index: int, text: TextEncoder) -> Batch:
    """Returns one record as a batch's row: the same keys and types, without the leading axis."""
    return {
        "image": record.image,
        "depth": record.depth,
        "valid": record.valid,
        "text": text.encode(record.caption),
        "index": np.int32(index),
    }


def train_batches(
    source: RecordSource,
    text: TextEncoder,
    *,
    batch: int,
    seed: int,
    resolution: int,
    sparse: Mapping[str, float] | None = None,
    workers: int = 0,
    prefetch: int = 2,
    part: tuple[int, int] = (0, 1),
) -> BatchIterator:
    """Returns endless shuffled batches at resolution x resolution; batch k is a function of (source, seed, k) alone.

    Every record comes once an epoch, and epochs run on within a batch, so a source shorter than a batch serves too.
    sparse: weights of the patterns that thin each depth map (None keeps it whole); drawn anew each epoch.
    workers: loader processes; 0 loads in a thread of this one. prefetch: batches held ready, per worker.
    part: (i, of): yields every of-th example of each batch, beginning at i, so that `of` processes have each batch together.
    Raises UserError if the source is empty, and from `next` whatever UserError a record raised.
    """
    _check_size(source, batch)
    examples = (
        grain.MapDataset.source(_Indexed(source, resolution))
        .shuffle(seed=_stream(seed, _SHUFFLE))
        .repeat()
        .random_map(_Prepare(text, dict(sparse) if sparse else None), seed=_stream(seed, _SPARSE))
    )
    process, of = part
    return BatchIterator(examples[process::of].batch(batch // of, batch_fn=stack), workers=workers, prefetch=prefetch)


class BatchIterator:
    """Endless batches with a state of one number, so that a checkpoint fits any number of workers."""

    def __init__(self, batches: grain.MapDataset, *, workers: int, prefetch: int):
        self._batches = batches
        self._workers = workers
        self._prefetch = prefetch
        self._delivered = 0
        self._running: list[Any] = []  # Grain's iterator, once there is one
        # Also where nobody closes: at exit Grain's own clean-up comes too late, prints errors and leaks shared memory.
        weakref.finalize(self, _stop, self._running)

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        if not self._running:
            self._running.append(self._start())
        try:
            batch = next(self._running[0])
        except BaseException:
            self.close()  # else the loader's processes outlive the error and hang the exit
            raise
        self._delivered += 1
        return _owned(batch) if self._workers else batch

    def get_state(self) -> dict[str, int]:
        """Returns how many batches were delivered: all that a later `set_state` needs (plain JSON)."""
        return {"batches": self._delivered}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on after the batches of a saved state; raises UserError if it is none."""
        delivered = state.get("batches")
        if set(state) != {"batches"} or not isinstance(delivered, int) or delivered < 0:
            raise UserError(f"data state {dict(state)!r} is not a number of batches", mend="restore another checkpoint")
        self.close()
        self._delivered = delivered

    def close(self) -> None:
        """Stops loader threads and processes; a later `next` starts them again where this left off."""
        _stop(self._running)

    def _start(self) -> Any:
        # Positions, not Grain's own iterator state: that one differs with the number of workers.
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._prefetch)
        ahead = self._batches[self._delivered :].to_iter_dataset(reading)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's processes read absl flags, which only an absl program has parsed
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=self._prefetch)
            ahead = ahead.mp_prefetch(options)
        return iter(ahead)


def stack(rows: Sequence[Batch]) -> Batch:
    """Stacks equal nested dictionaries of arrays along a new leading axis."""
    first = rows[0]
    return {
        key: stack([row[key] for row in rows]) if isinstance(value, dict) else np.stack([row[key] for row in rows])
        for key, value in first.items()
    }


def _stop(running: list[Any]) -> None:
    while running:
        running.pop().close()


def _owned(batch: Batch) -> Batch:
    """Copies what a loader process wrote into shared memory, so that a batch may be kept as long as anyone likes."""
    return {key: _owned(value) if isinstance(value, dict) else np.array(value) for key, value in batch.items()}


@dataclass(frozen=True)
class _Indexed:
    """A source whose items know their index, at the training size."""

    source: RecordSource
    resolution: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Record]:
        return int(index), fit(self.source[int(index)], self.resolution)


@dataclass(frozen=True)
class _Prepare:
    text: TextEncoder
    sparse: dict[str, float] | None

    def __call__(self, indexed: tuple[int, Record], rng: np.random.Generator) -> Batch:
        index, record = indexed
        return example(thin(record, rng, self.sparse) if self.sparse else record, index, self.text)


def _check_size(source: RecordSource, batch: int) -> None:
    if len(source) == 0:
        raise UserError("no record to read", where=source, mend="give it at least one")
    if batch < 1:
        raise UserError(f"batch size is {batch}", mend="it must be at least 1")


def _stream(seed: int, name: int) -> int:
    # Grain seeds epoch e of a shuffle with seed + e: hashed first, lest seed 0's second epoch be seed 1's first.
    return int(np.random.SeedSequence([seed, name]).generate_state(1)[0])
