"""The state of a prepare job on disk.

In the folder of the shards, for each split:

prepare-<split>.json     the settings of the first run; a run with other settings is refused
done-<split>/00003.json  written after shard 3: its checksum, statistics and unreadable records
manifest-<split>.json    written when all shards exist, with dataset_info.json and features.json
                         (`storage.tfds_metadata`)
failed-<split>.txt       the unreadable records, one per line: index, tab, reason

Shard k holds the readable records of those from k * shard_size on, so that its bytes depend on
nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from modality_forcing.data.resize import Size, limit_longer_side, limit_shorter_side
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError
from modality_forcing.paths import glob, is_file, size, write_file
from modality_forcing.storage import manifest, tfds_metadata
from modality_forcing.storage.codec import ImageFormat
from modality_forcing.storage.manifest import Manifest, ShardFile
from modality_forcing.storage.shard_job import ShardJob, check_or_write_settings, remove_temp_files
from modality_forcing.storage.stats import DatasetStats
from modality_forcing.text_io import json_checksum, parse_count, parse_text, with_checksum

Failures = tuple[tuple[int, str], ...]  # index and reason


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the bytes of the shards depend on, besides the files of the data set.

    records: read from the source, after any limit. resolution: of the shorter side; None for
    max_side, of the longer side.
    """

    dataset: str
    split: str
    records: int
    resolution: int | None
    max_side: int | None
    image_format: ImageFormat
    quality: int
    shard_size: int
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def choose_size(self) -> Callable[[Size], Size]:
        """From the (h, w) of a frame to its stored size."""
        if self.resolution is not None:
            return partial(limit_shorter_side, pixels=self.resolution)
        assert self.max_side is not None
        return partial(limit_longer_side, pixels=self.max_side)

    def to_json(self) -> dict[str, object]:
        """Returns the settings as stored, with the format of the examples."""
        return {"format": manifest.FORMAT, **vars(self), "options": dict(self.options)}

    def digest(self) -> str:
        """Returns a short hash of the settings."""
        return json_checksum(self.to_json())


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """One finished shard. settings: their digest."""

    settings: str
    file: ShardFile
    failed: Failures
    stats: DatasetStats
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """Returns the record as stored."""
        return {
            "settings": self.settings,
            "file": vars(self.file),
            "failed": [list(failure) for failure in self.failed],
            "stats": self.stats.to_json(),
            "versions": dict(self.versions),
        }


@dataclass(frozen=True)
class PrepareJob:
    """The folder of the shards, and which of them are finished.

    notes: of the source, for the manifest.
    """

    folder: Path
    dataset: Dataset
    settings: Settings
    notes: tuple[str, ...] = ()

    @property
    def shards(self) -> ShardJob:
        """The shards of the split."""
        s = self.settings
        return ShardJob(self.folder, self.dataset.name, s.split, s.records, s.shard_size)

    def check_or_write_settings(self) -> None:
        """Writes the settings. Raises UserError if the folder was started with others."""
        check_or_write_settings(
            self._settings_path, self.settings.to_json(), self.folder, again=manifest.AGAIN
        )

    def finished(self, index: int) -> ShardRecord | None:
        """Returns the record of a finished shard, None if it is missing or incomplete."""
        path = self._record_path(index)
        if not is_file(path):
            return None
        content = manifest.read_json(path)
        try:
            record = ShardRecord(
                settings=parse_text(content["settings"]),
                file=ShardFile.from_json(content["file"]),
                failed=tuple(
                    (parse_count(i), parse_text(reason)) for i, reason in content["failed"]
                ),
                stats=DatasetStats.from_json(content["stats"]),
                versions={name: parse_text(used) for name, used in content["versions"].items()},
            )
            record.stats.summary()  # fails for counts that contradict each other
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            hint = "delete it and run the same mforce prepare again"
            raise UserError("is damaged", where=path, hint=hint) from error
        shard = self.shards.path(index)
        complete = is_file(shard) and size(shard) == record.file.bytes
        return record if complete and record.settings == self.settings.digest() else None

    def finish(self, index: int, record: ShardRecord, alone: bool = True) -> None:
        """Records that a shard is finished, and removes what killed runs left of it.

        alone: no other process may be writing the same shard.
        """
        write_file(self._record_path(index), json.dumps(with_checksum(record.to_json())) + "\n")
        if not alone:
            return
        remove_temp_files(self._record_path(index))
        remove_temp_files(self.shards.path(index))

    def complete(self, records: Iterable[ShardRecord], alone: bool) -> Manifest:
        """Writes and returns the manifest of all shards, in order; lists the unreadable records.

        alone: no other process may be doing the same, so that temporary files are of killed runs.
        """
        records = list(records)
        stats, versions = DatasetStats(), dict[str, set[str]]()
        for record in records:
            stats.merge(record.stats)
            for name, version in record.versions.items():
                versions.setdefault(name, set()).add(version)
        written = Manifest(
            path=manifest.manifest_path(self.folder, self.settings.split),
            name=self.dataset.name,
            title=self.dataset.title,
            split=self.settings.split,
            unit=self.dataset.unit,
            license=self.dataset.license,
            files=tuple(record.file for record in records),
            stats=stats.summary(),
            settings=self.settings.to_json(),
            versions={name: ", ".join(sorted(used)) for name, used in sorted(versions.items())},
            notes=self.notes,
        )
        failed = self.write_failed(failure for record in records for failure in record.failed)
        manifest.write(written)
        for path in (failed, written.path, self._settings_path, *self._write_tfds_metadata()):
            if alone:
                remove_temp_files(path)
        return written

    def write_failed(self, failed: Iterable[tuple[int, str]]) -> Path:
        """Writes the list of the unreadable records and returns its path."""
        path = self.folder / f"failed-{self.settings.split}.txt"
        lines = (f"{index}\t{' '.join(reason.split())}\n" for index, reason in sorted(failed))
        write_file(path, "".join(lines))
        return path

    def _write_tfds_metadata(self) -> list[Path]:
        """Writes the files by which tensorflow-datasets opens all complete splits."""
        paths = glob(self.folder, manifest.manifest_path(Path(), "*").name)
        found = [manifest.read(self.folder, path.stem.removeprefix("manifest-")) for path in paths]
        splits = [
            one
            for one in found
            if one and one.name == self.dataset.name and one.split != tfds_metadata.NO_SPLIT
        ]
        if not splits:
            return []
        info, features = self.folder / "dataset_info.json", self.folder / "features.json"
        write_file(info, tfds_metadata.info_json(splits))
        write_file(features, tfds_metadata.features_json(self.settings.image_format))
        return [info, features]

    @property
    def _settings_path(self) -> Path:
        return self.folder / f"prepare-{self.settings.split}.json"

    def _record_path(self, index: int) -> Path:
        return self.folder / f"done-{self.settings.split}" / f"{index:05d}.json"
