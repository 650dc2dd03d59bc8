"""Folders of photographs or depth maps: read, run in batches, written, resumed.

Files are taken in groups of one batch. While the network runs, the next group is read and the last
one is written, several files at once. Results are functions of a file and the settings, and every
group runs the same program: an interrupted job resumes and writes byte-identical files.

Memory: three groups of small photographs are in it at most. Of one with more than `one_file.LARGE`
pixels only the network's input is kept; its results are made, one photograph at a time, as it is
written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from modality_forcing import locks, tasks
from modality_forcing.data.names import printable_name
from modality_forcing.errors import UserError
from modality_forcing.generator import KEPT_TEXTS
from modality_forcing.inference import batches
from modality_forcing.inference.job import Job
from modality_forcing.inference.manifest import Entry, Manifest, remove_temp_files
from modality_forcing.inference.metric import Scaling, describe_all
from modality_forcing.inference.one_file import Encoded, Loaded, Members, encode, load
from modality_forcing.inference.photos import Item, file_version
from modality_forcing.inference.pipeline import Pipeline
from modality_forcing.paths import remove, write_file
from modality_forcing.progress import ProgressMeter, print_stderr

_SMALL = 8  # files: their groups have the same program however few they are
# Threads that read, compress and write; decoders and zlib release Python's lock.
_WORKERS = min(max(4, os.cpu_count() or 1), 16)
_EVERY_S = 2.0  # between two reports, where they are lines


@dataclass(frozen=True)
class Summary:
    """How many files have results, how many of these had them before, and which failed."""

    done: int
    before: int
    failed: tuple[UserError, ...]
    outputs: tuple[Path, ...]  # that were written now


def run_job(pipeline: Pipeline, items: Sequence[Item], job: Job) -> Summary:
    """Works on files and writes the results, and a manifest beside them.

    Files with current results are left as they are. One that cannot be used is a line on stderr and
    an entry of the manifest; a single file raises its error.

    Raises UserError if too many fail or none is left, and if results cannot be written.
    """
    with locks.hold(job.out, "--out", ".sample.lock"):
        remove_temp_files(job.out, [item.name for item in items])
        with _Run(pipeline, items, job) as run:
            return run.main()


class _Run:
    def __init__(self, pipeline: Pipeline, items: Sequence[Item], job: Job):
        self.pipeline, self.items, self.job = pipeline, items, job
        # A single file is a program of one example; of more, the last group is filled up. A
        # larger batch than all files would only take memory.
        self.batch = min(pipeline.batch, max(len(items), _SMALL)) if len(items) > 1 else 1
        self.settings = job.digest(pipeline)
        modalities = pipeline.generator.modalities
        self.asked = [modalities[n] for n in tasks.parse(job.mode, list(modalities)).asked]
        self.manifest = Manifest(job.out)
        self.failed: list[UserError] = []
        self.outputs: list[Path] = []
        self.scalings: dict[str, Scaling] = {}  # by photograph, of those that were made now

    def __enter__(self) -> _Run:
        self.pool = ThreadPoolExecutor(_WORKERS, "photos")
        self.writer = ThreadPoolExecutor(1, "results")  # one: groups are written in order
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self.pool, self.writer):
            pool.shutdown(wait=True, cancel_futures=True)

    def main(self) -> Summary:
        """Works on all files."""
        wanted = {item for item in self.items if not self._is_current(item)}
        before = self.done = len(self.items) - len(wanted)
        meter = ProgressMeter(self.job.mode, len(self.items), done=before, every=_EVERY_S)
        self.meter = meter if len(self.items) > 1 else None
        # Groups of all the files, so that they are the same when a job resumes.
        groups = [self.items[i : i + self.batch] for i in range(0, len(self.items), self.batch)]
        groups = [kept for g in groups if (kept := [item for item in g if item in wanted])]
        pending: Future[None] | None = None  # of the last group
        reads = self._read(groups[0]) if groups else []
        for i, group in enumerate(groups):
            loaded = [future.result() for future in reads]
            reads = self._read(groups[i + 1]) if i + 1 < len(groups) else []
            encoded = self._predict(loaded)
            if pending is not None:
                pending.result()
            pending = self.writer.submit(self._finish, group, encoded)
        if pending is not None:
            pending.result()
        if self.meter is not None:
            self.meter.close()
        for line in describe_all(self.scalings, _SMALL) if self.scalings else ():
            print_stderr(line)
        self.manifest.close(printable_name(item.name) for item in self.items)
        done = len(self.items) - len(self.failed)
        if not done:
            hint = "each has its line above"
            raise UserError(f"none of {len(self.items)} files could be used", hint=hint)
        return Summary(done, before, tuple(self.failed), tuple(self.outputs))

    def _is_current(self, item: Item) -> bool:
        wanted = {"version": self._version(item), "settings": self.settings, "status": "done"}
        return self.manifest.is_current(printable_name(item.name), wanted)

    def _version(self, item: Item) -> str:
        """Returns what changes with an item and with the measurements of it in a folder."""
        source, version = self.job.scale, file_version(item.path)
        return version if source is None else version + source.version(item.path, item.name)

    def _read(self, group: Sequence[Item]) -> list[Future[Loaded | UserError]]:
        return [self.pool.submit(load, item, self.job, self.pipeline.size) for item in group]

    def _predict(
        self, loaded: Sequence[Loaded | UserError]
    ) -> list[Callable[[], Encoded | UserError]]:
        """Runs the network on a group and starts to encode the results."""
        good = [x for x in loaded if isinstance(x, Loaded)]
        made: list[list[Members]] = [[] for _ in good]  # by file and variant
        for number, caption in enumerate(self.job.variants if good else []):
            sampling = replace(self.job.sampling, repetition=number)
            members = [
                batches.predict(
                    self.pipeline.generator,
                    self.job.mode,
                    [x.fitted for x in good],
                    [caption] * len(good),
                    sampling=sampling,
                    member=member,
                    batch=self.batch,
                    free_text=len(self.job.variants) <= KEPT_TEXTS,
                )
                for member in range(self.job.ensemble)
            ]
            for variants, one in zip(made, zip(*members, strict=True), strict=True):
                variants.append(one)
        variants = iter(made)
        encoded: list[Callable[[], Encoded | UserError]] = []
        for x in loaded:
            members = next(variants) if isinstance(x, Loaded) else []
            work = partial(self._encode_and_write, x, members)
            waits = isinstance(x, Loaded) and x.is_large
            encoded.append(work if waits else self.pool.submit(work).result)
        return encoded

    def _encode_and_write(
        self, loaded: Loaded | UserError, variants: Sequence[Members]
    ) -> Encoded | UserError:
        """Writes the files of an item; raises UserError if that fails, which ends the job."""
        made = encode(loaded, variants, self.job, self.asked)
        if isinstance(made, UserError):
            return made
        for name, content in made.files.items():
            write_file(self.job.out / name, content)
        return replace(made, files=dict.fromkeys(made.files, b""))

    def _finish(
        self, group: Sequence[Item], encoded: Sequence[Callable[[], Encoded | UserError]]
    ) -> None:
        """Waits for the files of a group, then writes its entries in the order of the files."""
        entries: list[Entry] = []
        for item, finish in zip(group, encoded, strict=True):
            one = finish()
            about = {
                "name": printable_name(item.name),
                "file": printable_name(str(item.path)),
                "version": self._version(item),
                "settings": self.settings,
            }
            if isinstance(one, UserError):
                self._skip(one)
                entries.append({**about, "status": "failed", "error": str(one)})
                continue
            self._remove_outdated(item, one)
            self.outputs += [self.job.out / name for name in one.files]
            entries.append({**about, "status": "done", **one.entry})
            self._note_scaling(str(about["file"]), one)
        self.manifest.add(entries)
        self.done += len(group)
        if self.meter is not None:
            is_last = self.done == len(self.items)
            report = self.meter.report if is_last else self.meter.update
            report(self.done, failed=len(self.failed))

    def _note_scaling(self, file: str, made: Encoded) -> None:
        if made.scaling is not None:
            self.scalings[file] = made.scaling
        if made.doubts and self.meter is not None:
            self.meter.close()
        for line in made.doubts:
            print_stderr(f"{file}: {line}")

    def _remove_outdated(self, item: Item, made: Encoded) -> None:
        """Removes results that the manifest has of a file and that are not made again."""
        entry = self.manifest.entries.get(printable_name(item.name), {})
        outputs = entry.get("outputs")
        for name in outputs if isinstance(outputs, list) else ():
            is_own = str(name).startswith(f"{item.name}_") and ".." not in Path(str(name)).parts
            if is_own and name not in made.files:
                remove(self.job.out / str(name))

    def _skip(self, error: UserError) -> None:
        """Notes a file that failed; raises UserError if these are too many."""
        if self.meter is None:
            raise error
        self.meter.close()
        print_stderr(f"skipped {error}")
        self.failed.append(error)
        if len(self.failed) > self.job.max_errors * len(self.items):
            counts = f"{len(self.failed)} of {len(self.items)} files could not be used"
            what = f"{counts}, more than --max-errors={self.job.max_errors:g} allows"
            hint = "fix them or raise --max-errors, and the same command resumes"
            raise UserError(what, hint=hint)
