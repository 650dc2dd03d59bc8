"""A prepare job as an Apache Beam pipeline: the shards in parallel, then the manifest."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

from modality_forcing.errors import UserError
from modality_forcing.prepare.job import PrepareJob
from modality_forcing.prepare.work import Counters, Work, too_many_errors, write_shard
from modality_forcing.progress import print_stderr
from modality_forcing.storage import beam
from modality_forcing.storage.manifest import Manifest
from modality_forcing.storage.shard_job import hold_job, remove_temp_files


@dataclass(frozen=True)
class PrepareTask:
    """The shards of a prepare job. root: of the data set, as workers see it."""

    job: PrepareJob
    root: Path

    def open(self) -> beam.WriteShard:
        """Lists the data set in this worker and returns the writer of a shard.

        Raises UserError if this worker finds another number of records than the job has.
        """
        settings = self.job.settings
        source = self.job.dataset.open(self.root, settings.split)
        if len(source) < settings.records:
            what = f"holds {len(source)} records for a worker, not {settings.records}"
            raise UserError(what, where=self.root, hint="all workers must see the same files")
        context = multiprocessing.get_context("spawn")
        counters = Counters(context.Value("q", 0), context.Value("q", 0), context.Value("q", 0))
        work = Work(self.job, source, counters, alone=False)

        def write(index: int) -> None:
            if self.job.finished(index) is None:
                write_shard(work, index)

        return write


def prepare(job: PrepareJob, root: Path, options: str, *, max_errors: float = 0.01) -> Manifest:
    """Writes the missing shards by a pipeline; returns the manifest.

    root: of the data set. options: of Beam. max_errors: the fraction of the records that may be
    unreadable, known once all shards are written. Raises UserError as `work.prepare` does, and for
    shards that workers wrote elsewhere.
    """
    with hold_job(job.folder, f"prepare-{job.settings.split}", (0, 1)):
        job.check_or_write_settings()
        indices = range(job.shards.count)
        missing = [index for index in indices if job.finished(index) is None]
        print_stderr(f"{len(missing)} of {len(indices)} shards of {job.settings.split} to write")
        beam.run(PrepareTask(job, root), missing, options)
        found = [job.finished(index) for index in indices]
        records = [record for record in found if record]
        if len(records) < len(found):
            what = f"lacks {len(found) - len(records)} of {len(found)} shards after the pipeline"
            hint = "choose an --out that all workers and this machine reach by the same path"
            raise UserError(what, where=job.folder, hint=hint)
        failed = [failure for record in records for failure in record.failed]
        if len(failed) > int(max_errors * job.settings.records):
            raise too_many_errors(job, failed, job.settings.records, max_errors)
        for index in indices:
            remove_temp_files(job.shards.path(index))
        return job.complete(records, alone=True)
