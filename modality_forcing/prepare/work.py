"""The work of a prepare job: writes the missing shards, in this process or in several."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from PIL import features

import modality_forcing
from modality_forcing.data.records import Record, RecordSource, check
from modality_forcing.data.resize import downscale
from modality_forcing.data.worker_pool import death, start_worker
from modality_forcing.errors import UserError
from modality_forcing.prepare.job import Failures, PrepareJob, ShardRecord
from modality_forcing.progress import ProgressMeter, print_stderr
from modality_forcing.storage import codec
from modality_forcing.storage.manifest import Manifest, ShardFile
from modality_forcing.storage.shard_job import hold_job
from modality_forcing.storage.shards import ShardWriter
from modality_forcing.storage.stats import DatasetStats

_REPORT_EVERY = 10.0  # seconds between progress reports
_POLL_EVERY = 0.5  # seconds between looks at what workers have counted


@runtime_checkable
class Counter(Protocol):
    """An integer in shared memory."""

    value: int

    def get_lock(self) -> AbstractContextManager[object]:
        """Returns the lock of the value."""
        ...


@dataclass(frozen=True)
class Counters:
    """What the processes of a run count together. stop: not 0 to stop all of them."""

    records: Counter
    failed: Counter
    stop: Counter

    def add(self, counter: Counter) -> None:
        """Counts one more, safely among processes."""
        with counter.get_lock():
            counter.value += 1


@dataclass(frozen=True)
class Work:
    """What every process of a run needs.

    alone: no other process writes the same shards, so that temporary files are of killed runs.
    """

    job: PrepareJob
    source: RecordSource
    counters: Counters
    alone: bool = True


class Stopped(Exception):
    """A shard was left unfinished. The argument is its unreadable records."""


def prepare(
    job: PrepareJob,
    source: RecordSource,
    *,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    max_errors: float = 0.01,
) -> Manifest | None:
    """Writes the missing shards; returns the manifest, or None if other jobs have shards to write.

    shard: (i, n), every n-th shard from i on. workers: processes, 0 for this one. max_errors: the
    fraction of the job's records that may be unreadable.
    Raises UserError for more errors, if a file cannot be written, if a worker died, or if the same
    job runs already. Finished shards are kept in every case.
    """
    with hold_job(job.folder, f"prepare-{job.settings.split}", shard):
        return _prepare(job, source, workers, shard, max_errors=max_errors)


def _prepare(
    job: PrepareJob,
    source: RecordSource,
    workers: int,
    shard: tuple[int, int],
    *,
    max_errors: float,
) -> Manifest | None:
    job.check_or_write_settings()
    assigned = job.shards.assigned(shard)
    finished = {index: record for index in assigned if (record := job.finished(index))}
    missing = [index for index in assigned if index not in finished]
    total = job.shards.size(assigned)
    context = multiprocessing.get_context("spawn")
    counters = Counters(context.Value("q", 0), context.Value("q", 0), context.Value("q", 0))
    counters.failed.value = sum(len(record.failed) for record in finished.values())
    monitor = ProgressMonitor(
        ProgressMeter(
            f"{job.dataset.name} {job.settings.split} records",
            total,
            done=job.shards.size([*finished]),
            every=_REPORT_EVERY,
        ),
        counters,
        done=job.shards.size([*finished]),
        max_failed=int(max_errors * total),
    )
    work = Work(job, source, counters)
    run = (
        _run_parallel(work, missing, workers, monitor)
        if workers
        else _run_serial(work, missing, monitor)
    )
    failed: list[tuple[int, str]] = []
    for index, outcome in run:
        if isinstance(outcome, ShardRecord):
            finished[index] = outcome
        else:
            failed += outcome
    monitor.close()
    if counters.failed.value > monitor.max_failed:
        failed += (failure for record in finished.values() for failure in record.failed)
        raise too_many_errors(job, failed, total, max_errors)
    found = [finished.get(index) or job.finished(index) for index in range(job.shards.count)]
    records = [record for record in found if record]
    if len(records) < len(found):
        print_stderr(f"this job is done; {len(records)} of {len(found)} shards exist")
        return None
    return job.complete(records, alone=shard[1] == 1)


def write_shard(work: Work, index: int) -> ShardRecord:
    """Writes one shard and its record.

    Raises Stopped when the run is stopped, and UserError if the shard cannot be written.
    """
    settings, counters, path = work.job.settings, work.counters, work.job.shards.path(index)
    stats, failed = DatasetStats(), []
    with ShardWriter(path) as writer:
        for number in work.job.shards.items(index):
            if counters.stop.value:
                raise Stopped(failed)
            read = _read(work.source, number)
            if isinstance(read, Record):
                record = downscale(read, settings.choose_size)
                stats.add(record)
                writer.write(codec.encode(record, settings.image_format, settings.quality))
            else:
                failed.append((number, read))
                counters.add(counters.failed)
            counters.add(counters.records)
    record = ShardRecord(
        settings=settings.digest(),
        file=ShardFile(
            name=path.name,
            records=stats.records,
            failed=len(failed),
            bytes=writer.bytes,
            sha256=writer.sha256,
        ),
        failed=tuple(failed),
        stats=stats,
        versions=versions(),
    )
    work.job.finish(index, record, work.alone)
    return record


def versions() -> dict[str, str]:
    """Returns the versions of all libraries that the bytes of an example depend on."""
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
    """Returns a record, or the reason why it cannot be read."""
    try:
        return check(source[number])
    except (UserError, ValueError) as error:
        return str(error) or type(error).__name__


class ProgressMonitor:
    """Reports the progress of a run, and stops it at too many errors."""

    def __init__(self, meter: ProgressMeter, counters: Counters, *, done: int, max_failed: int):
        self._meter, self._counters, self._done = meter, counters, done
        self.max_failed = max_failed

    def update(self) -> None:
        """Stops the run at too many errors; reports from time to time."""
        if self._counters.failed.value > self.max_failed:
            self._counters.stop.value = 1
        self._meter.update(self._done + self._counters.records.value, **self._errors())

    def close(self) -> None:
        """Reports the end of the run."""
        self._meter.report(self._done + self._counters.records.value, **self._errors())
        self._meter.close()

    def _errors(self) -> dict[str, int]:
        failed = self._counters.failed.value
        return {"errors": failed} if failed else {}


@dataclass(frozen=True)
class _Monitored:
    """A source that updates the monitor before each record."""

    source: RecordSource
    monitor: ProgressMonitor

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        self.monitor.update()
        return self.source[index]


def _run_serial(
    work: Work, missing: Sequence[int], monitor: ProgressMonitor
) -> Iterator[tuple[int, ShardRecord | Failures]]:
    monitored = Work(work.job, _Monitored(work.source, monitor), work.counters)
    for index in missing:
        try:
            yield index, write_shard(monitored, index)
        except Stopped as stopped:
            yield index, tuple(stopped.args[0])
            return


_WORK: list[Work] = []  # of a worker process


def _run_parallel(
    work: Work, missing: Sequence[int], workers: int, monitor: ProgressMonitor
) -> Iterator[tuple[int, ShardRecord | Failures]]:
    context = multiprocessing.get_context("spawn")  # forking a process with threads is unsafe
    count = max(1, min(workers, len(missing)))
    pool = ProcessPoolExecutor(count, context, initializer=_start_worker, initargs=(work,))
    with _stop_on_error(pool, work.counters):
        futures: dict[Future[ShardRecord | Failures], int] = {
            pool.submit(_write_one, index): index for index in missing
        }
        processes = multiprocessing.active_children()
        while futures:
            ended, _ = wait(futures, timeout=_POLL_EVERY, return_when=FIRST_COMPLETED)
            for future in ended:
                try:
                    yield futures.pop(future), future.result()
                except BrokenProcessPool as error:
                    raise death(processes, hint="give fewer --workers") from error
            monitor.update()


@contextmanager
def _stop_on_error(pool: ProcessPoolExecutor, counters: Counters) -> Iterator[None]:
    """Ends the workers after their current record on an error."""
    try:
        yield
    except BaseException:
        counters.stop.value = 1
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(work: Work) -> None:
    start_worker()
    _WORK.append(work)


def _write_one(index: int) -> ShardRecord | Failures:
    if _WORK[0].counters.stop.value:
        return ()
    try:
        return write_shard(_WORK[0], index)
    except Stopped as stopped:
        return tuple(stopped.args[0])


def too_many_errors(
    job: PrepareJob, failed: list[tuple[int, str]], total: int, max_errors: float
) -> UserError:
    """Lists the unreadable records, of which there are some, and returns the error."""
    path = job.write_failed(failed)
    index, reason = min(failed)
    counts = f"{len(failed)} of {total} records could not be read"
    what = f"{counts}, more than --max-errors={max_errors:g} allows (record {index}: {reason})"
    hint = f"all are in {path}: fix them or raise --max-errors, and the same command resumes"
    return UserError(what, hint=hint)
