"""Records to batches with Grain: a batch depends only on the seed and its number.

Workers, threads and restarts do not change it.
"""

from __future__ import annotations

import time
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import grain
import numpy as np
from absl import flags

from modality_forcing import signals
from modality_forcing.data.augment import Augment
from modality_forcing.data.loader_processes import LoaderProcesses, ignore_signals
from modality_forcing.data.loader_stats import LoaderStats
from modality_forcing.data.mixture import InterleaveSchedule, MixtureComponent, interleave
from modality_forcing.data.records import Record, RecordSource
from modality_forcing.data.shared_memory import (
    Batch,
    BatchHandle,
    BufferedStacker,
    SharedMemoryReceiver,
    SharedMemorySender,
    no_shared_memory,
)
from modality_forcing.data.sparsity import sparsify
from modality_forcing.encoders.text import TextEncoder
from modality_forcing.errors import UserError
from modality_forcing.paths import is_environment_error

_SHUFFLE, _SPARSIFY, _AUGMENT = 0, 1, 2  # random streams, independent for one seed
_SMALL_SOURCE = 4096  # records up to which the order of an epoch is kept in memory
_ENDLESS = 2**62  # examples; no run comes near
_STATS = "_stats"  # f32 [b 3] in a batch in transit: source number, valid fraction, seconds to make


RecordInputs = Mapping[str, Callable[[Record], np.ndarray]]


def to_example(record: Record, index: int, text: TextEncoder) -> Batch:
    """Returns one record as a row of a batch: the same keys and types, no leading axis."""
    latents = record.latents
    image = {"image": record.image} if latents is None else {"latent": latents[0]}
    return {
        **image,
        "depth": record.depth,
        "valid": record.valid,
        "text": text.encode(record.caption),
        "index": np.int32(index),
    }


def train_batches(
    source: RecordSource | Mapping[str, MixtureComponent],
    text: TextEncoder,
    *,
    batch: int,
    seed: int,
    resolution: int,
    sparsity: Mapping[str, float] | None = None,
    augment: Augment | None = None,
    workers: int = 0,
    threads: int = 1,
    prefetch: int = 2,
    shard: tuple[int, int] = (0, 1),
    record_inputs: RecordInputs | None = None,
) -> BatchIterator:
    """Returns endless shuffled batches; batch k is a function of (source, seed, k) alone.

    A batch: image u8 [b h w 3] (or latent bf16 [b y x c]), depth f32 [b h w], valid bool [b h w],
    index i32 [b], text {name: [b ...]}, with h = w = resolution. An epoch of a source has each of
    its records once, in an order that depends on the source's name and not on other sources. Epochs
    continue within a batch, so a source may be shorter than a batch. Records without depth are
    kept.

    source: one source, or the components of a mixture by name (`InterleaveSchedule`).
    sparsity: weights of the sparsity patterns of one source; None keeps depth.
    augment: crops and flips. Patterns, crops and flips are sampled anew for each example.
    workers: loader processes; 0 loads in threads of this one. threads: batches made at a time, per
      process. prefetch: batches held ready, per process.
    shard: (i, n) yields every n-th example of each batch from i on: the part of one of n hosts.
    record_inputs: more arrays of a batch by name, as functions of the augmented record with all of
      its depth, picklable by name.

    `index` is the position of an example in the whole stream, k * batch + row, modulo 2**31: unique
    in a batch, and independent of hosts and sources.
    Raises UserError if a source is empty or weights are not a mixture, and from `next` if a record
    raises it; WorkerDied if a loader process is killed.
    """
    single = not isinstance(source, Mapping)
    components = {"": MixtureComponent(source, 1.0, sparsity)} if single else source
    schedule = interleave({name: component.weight for name, component in components.items()})
    for name, component in components.items():
        if len(component.source) == 0:
            where = name or component.source
            raise UserError("no record to read", where=where, hint="give it at least one")
    if batch < 1:
        raise UserError(f"batch size is {batch}", hint="it must be at least 1")
    patterns = [component.sparsity for component in components.values()]
    stream = _ExampleStream(components, schedule, seed)
    examples = (
        grain.MapDataset.source(stream)
        .random_map(_AugmentOp(augment or Augment(), resolution), seed=_stream_seed(seed, _AUGMENT))
        .random_map(
            _ToExampleOp(text, patterns, record_inputs or {}), seed=_stream_seed(seed, _SPARSIFY)
        )
    )
    host, hosts = shard
    return BatchIterator(
        examples[host::hosts],
        batch // hosts,
        workers=workers,
        threads=threads,
        prefetch=prefetch,
        names=tuple(components),
        records=lambda number: stream.records(range(number * batch, (number + 1) * batch)),
    )


class BatchIterator:
    """Endless batches; the state is their number, so a checkpoint fits any number of workers."""

    def __init__(
        self,
        examples: grain.MapDataset,
        batch: int,
        *,
        workers: int,
        threads: int,
        prefetch: int,
        names: Sequence[str],
        records: Callable[[int], dict[str, list[int]]],
    ):
        self._examples = examples
        self._records = records
        self._batch = batch
        self._workers = workers
        self._threads = threads
        self._prefetch = prefetch
        self._delivered = 0
        self._stats = LoaderStats(names)
        self._running = _Running()
        # For callers that do not close: at exit Grain cleans up too late, prints errors and leaks.
        weakref.finalize(self, self._running.stop)

    def __iter__(self) -> BatchIterator:
        return self

    def __next__(self) -> Batch:
        start = time.perf_counter()
        running = self._running
        try:
            with signals.blocked(running.batches is None):  # loaders cannot ignore them yet
                batch = next(running.batches or self._start())
            if isinstance(batch, BatchHandle):
                assert running.receiver is not None and running.processes is not None
                running.processes.find()
                batch = running.receiver.open(batch)
        except BaseException as error:
            died = running.processes.death(error) if running.processes else None
            self.close()  # else the loader's processes outlive the error, and the exit hangs
            if died is not None:
                raise died from error
            if self._workers and isinstance(error, OSError) and is_environment_error(error):
                raise no_shared_memory(f"{self._workers} loader processes", error) from error
            raise
        self._delivered += 1
        self._stats.add(batch.pop(_STATS), time.perf_counter() - start)
        return batch

    def pop_stats(self) -> dict[str, float]:
        """Returns statistics of the batches since the last call (`LoaderStats.pop`)."""
        return self._stats.pop()

    def records(self, number: int) -> dict[str, list[int]]:
        """Returns the numbers of the records of a batch, of all hosts, by their source."""
        return self._records(number)

    def get_state(self) -> dict[str, int]:
        """Returns {"batches": number of delivered batches}, for `set_state` (plain JSON)."""
        return {"batches": self._delivered}

    def set_state(self, state: Mapping[str, object]) -> None:
        """Continues after the batches of a saved state; raises UserError if it is not a state."""
        delivered = state.get("batches")
        if set(state) != {"batches"} or not isinstance(delivered, int) or delivered < 0:
            what = f"data state {dict(state)!r} is not a number of batches"
            raise UserError(what, hint="restore another checkpoint")
        self.close()
        self._delivered = delivered

    def close(self) -> None:
        """Stops loader threads and processes; a later `next` continues after the last batch."""
        self._running.stop()

    def _start(self) -> grain.DatasetIterator:
        # Resumes by position: Grain's own iterator state depends on the number of workers.
        buffered = max(self._prefetch, self._threads)
        reading = grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=buffered)
        stack = BufferedStacker()
        if self._workers:
            self._running.receiver = SharedMemoryReceiver()
            stack = SharedMemorySender(self._running.receiver.folder)
        batches = self._examples.batch(self._batch, batch_fn=stack)
        dataset = batches[self._delivered :].to_iter_dataset(reading)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain's processes read absl flags
            options = grain.MultiprocessingOptions(
                num_workers=self._workers, per_worker_buffer_size=self._prefetch
            )
            dataset = dataset.mp_prefetch(options, worker_init_fn=ignore_signals)
            self._running.processes = LoaderProcesses()
        self._running.batches = iter(dataset)
        return self._running.batches


@dataclass
class _Running:
    """What a started iterator holds: Grain's iterator, and the shared memory of its workers."""

    batches: grain.DatasetIterator | None = None
    receiver: SharedMemoryReceiver | None = None
    processes: LoaderProcesses | None = None

    def stop(self) -> None:
        batches, receiver = self.batches, self.receiver
        self.batches = self.receiver = self.processes = None
        if batches is not None:
            batches.close()
        if receiver is not None:
            receiver.close()


@dataclass(frozen=True)
class _Sample:
    """A record on its way to an example."""

    record: Record
    position: int  # in the stream
    source: int  # its number
    start: float  # seconds, on the clock of this process


class _ExampleStream:
    """The sampled records, by position in the stream."""

    def __init__(
        self, components: Mapping[str, MixtureComponent], schedule: InterleaveSchedule, seed: int
    ):
        self._names = list(components)
        self._sources = [component.source for component in components.values()]
        self._schedule = schedule
        self._shuffles = [
            EpochShuffle(len(component.source), _stream_seed(seed, _SHUFFLE, name))
            for name, component in components.items()
        ]

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, index: int) -> _Sample:
        start = time.perf_counter()
        source, turn = self._schedule[index]
        record = self._sources[source][self._shuffles[source][turn]]
        return _Sample(record, int(index), source, start)

    def records(self, positions: Sequence[int]) -> dict[str, list[int]]:
        """Returns the numbers of the records at some positions, by the name of their source."""
        found: dict[str, list[int]] = {}
        for position in positions:
            source, turn = self._schedule[position]
            found.setdefault(self._names[source], []).append(self._shuffles[source][turn])
        return found


class EpochShuffle:
    """Maps the turns of a source to its records: every epoch is another permutation of all."""

    def __init__(self, length: int, seed: int):
        self._length = length
        self._seed = seed
        self._shuffled = grain.MapDataset.range(length).shuffle(seed=seed).repeat()

    def __getitem__(self, turn: int) -> int:
        # Grain's shuffle permutes at least 65536 numbers and skips those beyond the length: 8 ms a
        # turn for 3 records.
        if self._length <= _SMALL_SOURCE:
            epoch, offset = divmod(turn, self._length)
            return int(_epoch_order(self._seed, epoch, self._length)[offset])
        number = self._shuffled[turn]
        assert number is not None  # nothing filters
        return int(number)


@lru_cache(256)  # two epochs of each source are in use at a time
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(length)


@dataclass(frozen=True)
class _AugmentOp:
    augment: Augment
    resolution: int

    def __call__(self, sample: _Sample, rng: np.random.Generator) -> _Sample:
        return replace(sample, record=self.augment(sample.record, self.resolution, rng))


@dataclass(frozen=True)
class _ToExampleOp:
    text: TextEncoder
    sparsity: list[Mapping[str, float] | None]
    record_inputs: RecordInputs

    def __call__(self, sample: _Sample, rng: np.random.Generator) -> Batch:
        record, patterns = sample.record, self.sparsity[sample.source]
        more = {name: read(record) for name, read in self.record_inputs.items()}
        record = sparsify(record, rng, patterns) if patterns else record
        row = to_example(record, sample.position % 2**31, self.text) | more
        valid = np.count_nonzero(record.valid) / record.valid.size
        seconds = time.perf_counter() - sample.start
        row[_STATS] = np.array([sample.source, valid, seconds], np.float32)
        return row


def _stream_seed(seed: int, stream: int, source: str = "") -> int:
    """Returns the seed of a random stream of a source."""
    # Grain seeds epoch e with seed + e: hash, or the second epoch of seed 0 is the first of seed 1.
    entropy = [seed, stream, zlib.crc32(source.encode())] if source else [seed, stream]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])
