"""The work of `mforce prepare`: shards written one by one, in this process or in several, and what comes of them told."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from typing import Any

from PIL import features

import modality_forcing
from modality_forcing.data.records import Record, RecordSource, check
from modality_forcing.data.resize import downscale
from modality_forcing.errors import UserError
from modality_forcing.prepare.job import Done, Place
from modality_forcing.storage import codec, manifest
from modality_forcing.storage.manifest import Manifest, ShardFile
from modality_forcing.storage.shards import ShardWriter
from modality_forcing.storage.stats import DatasetStats

Bad = tuple[tuple[int, str], ...]
_TELL_EVERY = 10.0  # seconds between lines of progress
_LOOK_EVERY = 0.5  # seconds between looks at what workers have counted


@dataclass(frozen=True)
class Counters:
    """What the processes of a run count together: plain numbers here, shared memory among processes."""

    records: Any  # .value: i64
    bad: Any
    stop: Any  # not 0: leave off

    def add(self, counter: Any, more: int = 1) -> None:
        """Counts one more, which several processes may do at once."""
        with counter.get_lock():
            counter.value += more


class Stopped(Exception):
    """A shard was left off halfway; its argument is what could not be read of it."""


def prepare(
    place: Place,
    source: RecordSource,
    tell: Callable[[str], None],
    *,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
    max_bad: float = 0.01,
) -> Manifest | None:
    """Makes the shards of a part that are not done yet; returns the manifest, or None while other parts have shards to make.

    part: (i, of): every of-th shard, beginning at i. workers: processes; 0 does it all in this one. max_bad: share of the
    part's records that may be unreadable. Raises UserError when there are more, if a file cannot be written, or a worker
    died. Finished shards stay in every case.
    """
    place.claim()
    mine = range(part[0], place.settings.shards, part[1])
    finished = {index: done for index in mine if (done := place.done(index))}
    waiting = [index for index in mine if index not in finished]
    context = multiprocessing.get_context("spawn")
    counters = Counters(context.Value("q", 0), context.Value("q", 0), context.Value("q", 0))
    counters.bad.value = sum(len(done.bad) for done in finished.values())
    total = sum(len(place.settings.indices(index)) for index in mine)
    watch = _Watch(
        place,
        counters,
        tell,
        total,
        sum(len(place.settings.indices(index)) for index in finished),
        int(max_bad * total),
    )
    run = (
        _in_processes(place, source, counters, waiting, workers, watch)
        if workers
        else _here(place, source, counters, waiting, watch)
    )
    failed: list[tuple[int, str]] = []
    for index, outcome in run:
        if isinstance(outcome, Done):
            finished[index] = outcome
        else:
            failed += outcome
    watch.say()
    if counters.bad.value > watch.most_bad:
        raise _too_many(
            place,
            [*failed, *(bad for done in finished.values() for bad in done.bad)],
            total,
            max_bad,
        )
    everything = [
        finished.get(index) or place.done(index) for index in range(place.settings.shards)
    ]
    whole = [done for done in everything if done]
    if len(whole) < len(everything):
        tell(f"this part is done; {len(whole)} of {len(everything)} shards are there")
        return None
    return place.complete(whole, alone=part[1] == 1)


def write_shard(place: Place, source: RecordSource, index: int, counters: Counters) -> Done:
    """Writes one shard and puts down that it is done; raises Stopped if told to leave off, UserError if it cannot be written."""
    settings, path = place.settings, place.shard(index)
    tally, bad = DatasetStats(), []
    with ShardWriter(path) as writer:
        for number in settings.indices(index):
            if counters.stop.value:
                raise Stopped(bad)
            read = _read(source, number)
            if isinstance(read, Record):
                record = downscale(read, settings.size)
                tally.add(record)
                writer.write(codec.encode(record, settings.image_format, settings.quality))
            else:
                bad.append((number, read))
                counters.add(counters.bad)
            counters.add(counters.records)
    file = ShardFile(path.name, tally.records, len(bad), path.stat().st_size, manifest.sha256(path))
    done = Done(settings.digest(), file, tuple(bad), tally, versions())
    place.mark(index, done)
    return done


def versions() -> dict[str, str]:
    """Returns the versions of everything that the bytes of an example pass through."""
    packages = {
        name: importlib.metadata.version(name) for name in ("array-record", "numpy", "pillow")
    }
    coders = {
        name: str(features.version(feature))
        for name, feature in (("libjpeg", "jpg"), ("libwebp", "webp"))
    }
    turbo = features.version("libjpeg_turbo")
    return {
        **packages,
        **coders,
        **({"libjpeg": f"turbo {turbo}"} if turbo else {}),
        "modality_forcing": modality_forcing.__version__,
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }


def _read(source: RecordSource, number: int) -> Record | str:
    """A record, or why there is none."""
    try:
        return check(source[number])
    except (UserError, ValueError) as error:
        return str(error) or type(error).__name__


class _Watch:
    """Says how far a run is, and stops it when too much could not be read."""

    def __init__(
        self,
        place: Place,
        counters: Counters,
        tell: Callable[[str], None],
        total: int,
        before: int,
        most_bad: int,
    ):
        self._what = f"{place.dataset.name} {place.settings.split}"
        self._counters = counters
        self._tell = tell
        self._total = total
        self._before = before  # records of shards that were done already
        self.most_bad = most_bad
        self._began = self._told = time.monotonic()

    def look(self) -> None:
        if self._counters.bad.value > self.most_bad:
            self._counters.stop.value = 1
        if time.monotonic() - self._told >= _TELL_EVERY:
            self.say()

    def say(self) -> None:
        self._told = time.monotonic()
        done, seconds = self._counters.records.value, self._told - self._began
        so_far, rate = self._before + done, done / max(seconds, 1e-9)
        line = f"{self._what}: {so_far} of {self._total} records"
        if done:
            line += f", {rate:.3g} a second"
        if done and so_far < self._total:
            line += f", {_duration((self._total - so_far) / rate)} left"
        if bad := self._counters.bad.value:
            line += f", {bad} could not be read"
        self._tell(line)


def _here(
    place: Place, source: RecordSource, counters: Counters, waiting: Sequence[int], watch: _Watch
) -> Iterator[tuple[int, Done | Bad]]:
    watched = _Watched(source, watch)
    for index in waiting:
        try:
            yield index, write_shard(place, watched, index, counters)
        except Stopped as stopped:
            yield index, tuple(stopped.args[0])
            return


@dataclass(frozen=True)
class _Watched:
    """A source that looks at the run before each record."""

    source: RecordSource
    watch: _Watch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        self.watch.look()
        return self.source[index]


_WORK: list[tuple[Place, RecordSource, Counters]] = []  # in a worker process: what it works on


def _in_processes(
    place: Place,
    source: RecordSource,
    counters: Counters,
    waiting: Sequence[int],
    workers: int,
    watch: _Watch,
) -> Iterator[tuple[int, Done | Bad]]:
    context = multiprocessing.get_context("spawn")  # forking a process with threads is unsafe
    count = max(1, min(workers, len(waiting)))
    pool = ProcessPoolExecutor(
        count, context, initializer=_begin, initargs=(place, source, counters)
    )
    with _leaving_off(pool, counters):
        futures: dict[Future[Done | Bad], int] = {
            pool.submit(_one, index): index for index in waiting
        }
        while futures:
            ended, _ = wait(futures, timeout=_LOOK_EVERY, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    yield futures.pop(future), future.result()
                except BrokenProcessPool as error:
                    hint = "if memory ran out, give fewer --workers; the same command goes on"
                    raise UserError(
                        "a worker process died", where=place.folder, hint=hint
                    ) from error
            watch.look()


@contextmanager
def _leaving_off(pool: ProcessPoolExecutor, counters: Counters) -> Iterator[None]:
    """Sees to it that after an error workers end with the record they are at."""
    try:
        yield
    except BaseException:
        counters.stop.value = 1
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(place: Place, source: RecordSource, counters: Counters) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent tells the workers
    _WORK.append((place, source, counters))
    parent = multiprocessing.parent_process()
    assert parent is not None
    # A parent that was killed cannot end its workers, which would wait for ever.
    threading.Thread(target=lambda: (wait_for([parent.sentinel]), os._exit(1)), daemon=True).start()


def _one(index: int) -> Done | Bad:
    place, source, counters = _WORK[0]
    if counters.stop.value:
        return ()
    try:
        return write_shard(place, source, index, counters)
    except Stopped as stopped:
        return tuple(stopped.args[0])


def _too_many(place: Place, bad: list[tuple[int, str]], total: int, max_bad: float) -> UserError:
    path = place.list_bad(bad)
    index, reason = min(bad)
    what = f"{len(bad)} of {total} records could not be read, more than --max-bad={max_bad:g} allows (first {index}: {reason})"
    return UserError(
        what, hint=f"all are in {path}: hint them or raise --max-bad, and the same command goes on"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
