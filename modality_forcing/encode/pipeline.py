"""An encode job as an Apache Beam pipeline: every worker loads the encoders and writes shards."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modality_forcing import distributed
from modality_forcing.config import MeshConfig
from modality_forcing.encode.job import EncodeJob, Part
from modality_forcing.encoders.frozen import FrozenEncoders
from modality_forcing.errors import UserError
from modality_forcing.paths import is_file, read_text, remove, write_file
from modality_forcing.progress import print_stderr
from modality_forcing.storage import beam, latent_cache
from modality_forcing.storage.shard_job import hold_job, remove_temp_files
from modality_forcing.storage.shards import Shards
from modality_forcing.train import sharding


@dataclass(frozen=True, kw_only=True)
class EncodeTask:
    """The shards of a cache: those of the text states, then those of the latents.

    text, image: where the encoders are, as workers see it; "" for none. batch: images or captions
    per step and device. tokens: of a caption at most. resolution: pixels a side.
    """

    source: Shards
    out: Path
    settings: Mapping[str, Any]
    text: str
    image: str
    batch: int
    tokens: int
    resolution: int

    @property
    def captions(self) -> Path:
        """The path of the captions, which the workers read; it exists while the pipeline runs."""
        return self.out / f"captions-{self.source.split}.json"

    def job(self, frozen: FrozenEncoders) -> EncodeJob:
        """Returns the job, which encodes on all devices of the encoders' mesh."""
        size = frozen.mesh.size if frozen.mesh else 1
        return EncodeJob(
            source=self.source,
            out=self.out,
            settings=self.settings,
            frozen=frozen,
            batch=self.batch * size,
        )

    def parts(self, frozen: FrozenEncoders) -> list[Part]:
        """Returns the shards to write, once the captions are there."""
        job, parts = self.job(frozen), []
        if frozen.has_text:
            parts.append(job.text(json.loads(read_text(self.captions)), self.tokens))
        if frozen.has_image:
            parts.append(job.images(self.resolution))
        return parts

    def open(self) -> beam.WriteShard:
        """Checks the encoders on this worker's devices and returns the writer of a shard.

        Raises UserError if they are others than the job's.
        """
        mesh = sharding.make_mesh(MeshConfig(), distributed.local_devices())
        frozen = FrozenEncoders(self.text, self.image, mesh)
        for kind, identity in frozen.identity().items():
            if not identity.items() <= self.settings[kind].items():
                where = getattr(self, kind)
                what = "holds other weights for a worker than for the process that started it"
                raise UserError(what, where=where, hint="give all workers the same files")
        parts = self.parts(frozen)
        one_at_a_time = threading.Lock()  # the threads of a worker share its devices

        def write(number: int) -> None:
            part, index = _locate(parts, number)
            with one_at_a_time:
                if not is_file(part.shards.path(index)):
                    part.write(index)

        return write


def encode(task: EncodeTask, options: str) -> str:
    """Writes the missing shards by a pipeline; returns the path of the cache's settings.

    options: of Beam. This process loads no weights. Raises UserError if the cache was started with
    other settings, if the same job runs already, and for shards that workers wrote elsewhere.
    """
    frozen = FrozenEncoders(task.text, task.image)
    job = task.job(frozen)
    with hold_job(task.out, f"encode-{task.source.split}", (0, 1)):
        job.check_or_write_settings()
        if frozen.has_text:
            write_file(task.captions, json.dumps(job.write_captions()))
        parts = task.parts(frozen)
        total = sum(part.shards.count for part in parts)
        missing = _missing(parts, total)
        print_stderr(f"{len(missing)} of {total} shards of {task.source.split} to write")
        beam.run(task, missing, options)
        if missing := _missing(parts, total):
            what = f"lacks {len(missing)} of {total} shards after the pipeline"
            hint = "choose an --out that all workers and this machine reach by the same path"
            raise UserError(what, where=task.out, hint=hint)
        for number in range(total):
            part, index = _locate(parts, number)
            remove_temp_files(part.shards.path(index))
        remove(task.captions)
    return str(latent_cache.settings_path(task.out, task.source.split))


def _missing(parts: list[Part], total: int) -> list[int]:
    located = ((number, *_locate(parts, number)) for number in range(total))
    return [number for number, part, index in located if not is_file(part.shards.path(index))]


def _locate(parts: list[Part], number: int) -> tuple[Part, int]:
    """Returns the part that a number belongs to, and the shard's index in it."""
    for part in parts:
        if number < part.shards.count:
            return part, number
        number -= part.shards.count
    raise IndexError(f"shard {number} past the last")
