"""Records to batches, by Grain: a batch depends on the seed and its number alone, not on workers or restarts."""

from __future__ import annotations

import threading
import time
import weakref
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import grain
import numpy as np
from absl import flags

from modality_forcing.data.augment import Augment
from modality_forcing.data.mixture import Part, Schedule, schedule
from modality_forcing.data.records import Record, RecordSource
from modality_forcing.data.shared_memory import Batch, Received, Send, Sent, Stack
from modality_forcing.data.sparsity import thin
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.errors import UserError

_SHUFFLE, _SPARSE, _AUGMENT = (
    0,
    1,
    2,
)  # names of the random streams: independent of each other for one seed
_FEW = 4096  # records of a source whose order is kept in memory rather than computed for each draw
_ENDLESS = 2**62  # examples; what is asked for is never near it
_TOLD = "_told"  # f32 [b 3] in a batch on its way here: number of the source, valid part, seconds it took to make


def example(record: Record, index: int, text: TextEncoder) -> Batch:
    """Returns one record as a batch's row: the same keys and types, without the leading axis."""
    seen = {"image": record.image} if record.latents is None else {"latent": record.latents[0]}
    return {
        **seen,
        "depth": record.depth,
        "valid": record.valid,
        "text": text.encode(record.caption),
        "index": np.int32(index),
    }


def train_batches(
    source: RecordSource | Mapping[str, Part],
    text: TextEncoder,
    *,
    batch: int,
    seed: int,
    resolution: int,
    sparse: Mapping[str, float] | None = None,
    augment: Augment | None = None,
    workers: int = 0,
    threads: int = 1,
    prefetch: int = 2,
    part: tuple[int, int] = (0, 1),
) -> BatchIterator:
    """Returns endless shuffled batches at resolution x resolution; batch k is a function of (source, seed, k) alone.

    A batch: image u8 [b h w 3] (or latent bf16 [b y x c]), depth f32 [b h w], valid bool [b h w], index i32 [b],
    text {name: [b ...]}.

    source: one source, or several by name with their weights, which take turns (`Schedule`). Every record of a source
    comes once in an epoch of that source, in a new order each time, which depends on its name and not on the others;
    epochs run on within a batch, so a source shorter than a batch serves too. Nothing is left out: a record without
    depth trains the picture.
    sparse: weights of the patterns that thin each depth map of one source (None keeps it whole; parts have their own),
    augment: crops and flips; both drawn anew each epoch, by the example's own generator.
    workers: loader processes; 0 loads in threads of this one. threads: batches made at a time, in each process.
    prefetch: batches held ready, per process.
    part: (i, of): yields every of-th example of each batch, beginning at i, so that `of` processes have each batch together.

    `index` of an example is its number in the whole stream, k * batch + its place in batch k, modulo 2**31: no two
    examples of a batch share one, and it depends on neither hosts nor sources.
    Raises UserError if a source is empty or weights make no mixture, and from `next` whatever UserError a record raised.
    """
    parts = source if isinstance(source, Mapping) else {"": Part(source, 1.0, sparse)}
    order = schedule({name: part.weight for name, part in parts.items()})
    for name, one in parts.items():
        if len(one.source) == 0:
            raise UserError(
                "no record to read", where=name or one.source, hint="give it at least one"
            )
    if batch < 1:
        raise UserError(f"batch size is {batch}", hint="it must be at least 1")
    examples = (
        grain.MapDataset.source(_Examples(parts, order, seed))
        .random_map(_Place(augment or Augment(), resolution), seed=_stream(seed, _AUGMENT))
        .random_map(
            _Prepare(text, [one.sparse for one in parts.values()]), seed=_stream(seed, _SPARSE)
        )
    )
    process, of = part
    own = examples[process::of]
    return BatchIterator(
        own, batch // of, workers=workers, threads=threads, prefetch=prefetch, names=tuple(parts)
    )


class BatchIterator:
    """Endless batches with a state of one number, so that a checkpoint fits any number of workers."""

    def __init__(
        self,
        examples: grain.MapDataset,
        batch: int,
        *,
        workers: int,
        threads: int,
        prefetch: int,
        names: Sequence[str],
    ):
        self._examples = examples
        self._batch = batch
        self._workers = workers
        self._threads = threads
        self._prefetch = prefetch
        self._delivered = 0
        self._told = Told(names)
        self._running: list[
            Any
        ] = []  # once there are: what workers' slabs are mapped by, and Grain's iterator
        # Also where nobody closes: at exit Grain's own clean-up comes too late, prints errors and leaks shared memory.
        weakref.finalize(self, _stop, self._running)

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        asked = time.perf_counter()
        if not self._running:
            self._start()
        try:
            batch = next(self._running[-1])
            batch = self._running[0].open(batch) if isinstance(batch, Sent) else batch
        except BaseException:
            self.close()  # else the loader's processes outlive the error and hang the exit
            raise
        self._delivered += 1
        self._told.add(batch.pop(_TOLD), time.perf_counter() - asked)
        return batch

    def told(self) -> dict[str, float]:
        """Returns what the batches since the last call were like (`Told.take`)."""
        return self._told.take()

    def get_state(self) -> dict[str, int]:
        """Returns how many batches were delivered: all that a later `set_state` needs (plain JSON)."""
        return {"batches": self._delivered}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on after the batches of a saved state; raises UserError if it is none."""
        delivered = state.get("batches")
        if set(state) != {"batches"} or not isinstance(delivered, int) or delivered < 0:
            raise UserError(
                f"data state {dict(state)!r} is not a number of batches",
                hint="restore another checkpoint",
            )
        self.close()
        self._delivered = delivered

    def close(self) -> None:
        """Stops loader threads and processes; a later `next` starts them again where this left off."""
        _stop(self._running)

    def _start(self) -> None:
        # Positions, not Grain's own iterator state: that one differs with the number of workers.
        held = max(self._prefetch, self._threads)
        reading = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=held)
        stack: Stack | Send = Stack()
        if self._workers:
            self._running.append(Received())
            stack = Send(self._running[0].folder)
        batches = self._examples.batch(self._batch, batch_fn=stack)
        ahead = batches[self._delivered :].to_iter_dataset(reading)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's processes read absl flags, which only an absl program has parsed
            options = grain.MultiprocessingOptions(
                num_workers=self._workers, per_worker_buffer_size=self._prefetch
            )
            ahead = ahead.mp_prefetch(options)
        self._running.append(iter(ahead))


class Told:
    """Sums of what batches were like: how much of each source, how much of its depth is known, how long it all took."""

    def __init__(self, names: Sequence[str]):
        self._names = names
        self._sums = np.zeros((3, len(names)))  # of each source: examples, valid parts, seconds
        self._waits: list[float] = []
        self._lock = threading.Lock()

    def add(self, rows: np.ndarray, waited: float) -> None:
        """Adds a batch: rows f32 [b 3] of source number, valid part and seconds to make it; seconds waited for it."""
        number, count = rows[:, 0].astype(np.int64), len(self._names)
        sums = [
            np.bincount(number, column, minlength=count)
            for column in (np.ones(len(rows)), rows[:, 1], rows[:, 2])
        ]
        with self._lock:  # batches may come in one thread and be told of in another
            self._sums += np.stack(sums)
            self._waits.append(waited)

    def take(self) -> dict[str, float]:
        """Returns means since the last call: `wait`, seconds a batch was waited for; and of each source (after a slash
        its name, if there are several) its `share` of the examples, the `valid` part of its pixels, the `seconds` that
        making one example takes. Sources of which none came are left out, and without a batch all.
        """
        with self._lock:
            sums, waits = self._sums, self._waits
            self._sums, self._waits = np.zeros_like(sums), []
        told = {"wait": float(np.mean(waits))} if waits else {}
        for name, (count, valid, seconds) in zip(self._names, sums.T, strict=True):
            if count:
                means = {
                    "share": count / sums[0].sum(),
                    "valid": valid / count,
                    "seconds": seconds / count,
                }
                told |= {
                    f"{key}/{name}" if name else key: float(mean) for key, mean in means.items()
                }
        return told


def _stop(running: list[Any]) -> None:
    while running:
        running.pop().close()


@dataclass(frozen=True)
class _Drawn:
    """A record on its way to be an example."""

    record: Record
    position: int  # in the stream
    number: int  # of its source
    began: float  # seconds, on the clock of this process


class _Examples:
    """The stream of drawn records, by position."""

    def __init__(self, parts: Mapping[str, Part], order: Schedule, seed: int):
        self._sources = [part.source for part in parts.values()]
        self._order = order
        self._epochs = [
            _Epochs(len(part.source), _stream(seed, _SHUFFLE, name)) for name, part in parts.items()
        ]

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> _Drawn:
        began = time.perf_counter()
        number, draw = self._order[index]
        return _Drawn(self._sources[number][self._epochs[number][draw]], int(index), number, began)


class _Epochs:
    """Epoch after epoch of a source, each in an order of its own: what record a draw gives."""

    def __init__(self, length: int, seed: int):
        self._length = length
        self._seed = seed
        self._many = grain.MapDataset.range(length).shuffle(seed=seed).repeat()

    def __getitem__(self, draw: int) -> int:
        # Grain shuffles 65536 numbers at least and passes over those that are not there: 3 of them take 8 ms a draw.
        if self._length <= _FEW:
            epoch, place = divmod(draw, self._length)
            return int(_order(self._seed, epoch, self._length)[place])
        drawn = self._many[draw]
        assert drawn is not None  # nothing filters
        return int(drawn)


@lru_cache(256)  # two epochs of each source are in use at a time
def _order(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


@dataclass(frozen=True)
class _Place:
    augment: Augment
    resolution: int

    def __call__(self, drawn: _Drawn, rng: np.random.Generator) -> _Drawn:
        return replace(drawn, record=self.augment(drawn.record, self.resolution, rng))


@dataclass(frozen=True)
class _Prepare:
    text: TextEncoder
    sparse: list[Mapping[str, float] | None]

    def __call__(self, drawn: _Drawn, rng: np.random.Generator) -> Batch:
        record, patterns = drawn.record, self.sparse[drawn.number]
        record = thin(record, rng, patterns) if patterns else record
        row = example(record, drawn.position % 2**31, self.text)
        known = np.count_nonzero(record.valid) / record.valid.size
        row[_TOLD] = np.array([drawn.number, known, time.perf_counter() - drawn.began], np.float32)
        return row


def _stream(seed: int, name: int, source: str = "") -> int:
    # Grain seeds epoch e of a shuffle with seed + e: hashed first, lest seed 0's second epoch be seed 1's first.
    of = [zlib.crc32(source.encode())] if source else []
    return int(np.random.SeedSequence([seed, name, *of]).generate_state(1)[0])
