"""What is to be prepared: the settings that decide every byte of the shards, and where what is done is kept.

In the folder of the shards, for each split:

prepare-<split>.json        the settings, put down by the first run; a run with others is refused
done-<split>/00003.json     written after shard 3: its checksum, what is in it, what could not be read
manifest-<split>.json       when all shards are there; with dataset_info.json and features.json (`data.tfds_files`)
bad-<split>.txt             the records that could not be read, a line each: index, tab, reason

Shard k holds the records from k * shard_size on, whichever of them can be read, so that its bytes depend on nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from modality_forcing.atomic_io import write_file
from modality_forcing.data.resize import Size, limit_longer_side, limit_shorter_side
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError
from modality_forcing.storage import manifest, tfds_metadata
from modality_forcing.storage.codec import ImageFormat
from modality_forcing.storage.manifest import Manifest, ShardFile
from modality_forcing.storage.shards import shard_name
from modality_forcing.storage.stats import DatasetStats
from modality_forcing.tree import differences


@dataclass(frozen=True)
class Settings:
    """Everything that the bytes of the shards depend on, besides the data set's own files."""

    dataset: str
    split: str
    records: int  # read from the source, after any limit
    resolution: int | None  # of the shorter side; None: see max_side
    max_side: int | None
    image_format: ImageFormat
    quality: int
    shard_size: int
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """How many shards there will be."""
        return -(-self.records // self.shard_size)

    @property
    def size(self) -> Callable[[Size], Size]:
        """From the (h, w) of a frame to that at which it is stored."""
        if self.resolution is not None:
            return partial(limit_shorter_side, pixels=self.resolution)
        assert self.max_side is not None
        return partial(limit_longer_side, pixels=self.max_side)

    def indices(self, shard: int) -> range:
        """Returns the records that belong to a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.records))

    def to_json(self) -> dict[str, Any]:
        """Returns the settings as they are written, with the format of the examples."""
        return {"format": manifest.FORMAT, **vars(self), "options": dict(self.options)}

    def digest(self) -> str:
        """Returns a short name of these settings."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Done:
    """One shard that is finished."""

    settings: str  # digest
    file: ShardFile
    bad: tuple[tuple[int, str], ...]  # index and reason
    tally: DatasetStats
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Returns it as it is written."""
        content = {
            "settings": self.settings,
            "file": vars(self.file),
            "bad": [list(bad) for bad in self.bad],
        }
        return {**content, "tally": self.tally.to_json(), "versions": dict(self.versions)}


@dataclass(frozen=True)
class Place:
    """The folder of the shards, seen as a job: which are done."""

    folder: Path
    dataset: Dataset
    settings: Settings

    def shard(self, index: int) -> Path:
        """Returns where a shard is or will be."""
        return self.folder / shard_name(
            self.dataset.name, self.settings.split, index, self.settings.shards
        )

    def claim(self) -> None:
        """Puts the settings down; raises UserError, naming what differs, if the folder was begun with others."""
        path = self._settings_path
        if not path.is_file():
            write_file(path, json.dumps(self.settings.to_json(), indent=1) + "\n")
        if told := differences(manifest.read_json(path), self.settings.to_json()):
            raise UserError(
                f"was begun with other settings ({told})",
                where=self.folder,
                hint="choose another --out, or delete this one",
            )

    def done(self, index: int) -> Done | None:
        """Returns what is known of a finished shard, None if it is to be made: its file must be there in its full length."""
        path = self._done_path(index)
        if not path.is_file():
            return None
        content = manifest.read_json(path)
        try:
            done = Done(
                settings=str(content["settings"]),
                file=ShardFile.from_json(content["file"]),
                bad=tuple((int(number), str(reason)) for number, reason in content["bad"]),
                tally=DatasetStats.from_json(content["tally"]),
                versions=dict(content["versions"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "is damaged", where=path, hint="delete it and run the same mforce prepare again"
            ) from error
        shard = self.shard(index)
        whole = shard.is_file() and shard.stat().st_size == done.file.bytes
        return done if whole and done.settings == self.settings.digest() else None

    def mark(self, index: int, done: Done) -> None:
        """Puts down that a shard is finished, and removes what killed runs left of it."""
        write_file(self._done_path(index), json.dumps(done.to_json()) + "\n")
        _sweep(self._done_path(index))
        _sweep(self.shard(index))

    def complete(self, finished: Iterable[Done], alone: bool) -> Manifest:
        """Writes and returns the manifest of all shards, in order; also the list of what could not be read.

        alone: no other process may be doing the same, so that half-written files are those of killed runs.
        """
        finished = list(finished)
        tally, versions = DatasetStats(), dict[str, set[str]]()
        for done in finished:
            tally.merge(done.tally)
            for name, version in done.versions.items():
                versions.setdefault(name, set()).add(version)
        written = Manifest(
            path=manifest.manifest_path(self.folder, self.settings.split),
            name=self.dataset.name,
            title=self.dataset.title,
            split=self.settings.split,
            unit=self.dataset.unit,
            license=self.dataset.license,
            files=tuple(done.file for done in finished),
            stats=tally.summary(),
            settings=self.settings.to_json(),
            versions={
                name: ", ".join(sorted(several)) for name, several in sorted(versions.items())
            },
        )
        bad = self.list_bad(bad for done in finished for bad in done.bad)
        manifest.write(written)
        for path in (bad, written.path, self._settings_path, *self._write_for_tfds()):
            if alone:
                _sweep(path)
        return written

    def list_bad(self, bad: Iterable[tuple[int, str]]) -> Path:
        """Writes the list of what could not be read, and returns where."""
        path = self.folder / f"bad-{self.settings.split}.txt"
        write_file(
            path, "".join(f"{index}\t{' '.join(reason.split())}\n" for index, reason in sorted(bad))
        )
        return path

    def _write_for_tfds(self) -> list[Path]:
        """Writes what tensorflow-datasets opens the folder by, with all splits that are complete; returns where."""
        paths = sorted(self.folder.glob(manifest.manifest_path(Path(), "*").name))
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

    def _done_path(self, index: int) -> Path:
        return self.folder / f"done-{self.settings.split}" / f"{index:05d}.json"


def _sweep(path: Path) -> None:
    """Removes what killed runs left beside a file that is now in its place."""
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink(missing_ok=True)
