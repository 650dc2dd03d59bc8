"""`manifest-<split>.json` of a prepared folder: shards, checksums, statistics, settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from modality_forcing.errors import UserError
from modality_forcing.paths import is_file, open_file, write_file
from modality_forcing.storage.stats import check_summary
from modality_forcing.text_io import parse_count, parse_text, read_verified, with_checksum
from modality_forcing.tree import JsonObject

# Of the manifest and of the examples. Format 2 renamed keys (licence, bad, and those of
# statistics).
FORMAT = 2
AGAIN = "run the same mforce prepare again"
_TEXTS = ("name", "title", "split", "unit", "license")
_KEYS = {"format", *_TEXTS, "failed", "bytes", "shards", "settings", "versions", "files", "notes"}


@dataclass(frozen=True)
class ShardFile:
    """One shard."""

    name: str  # of the file
    records: int
    failed: int  # records that could not be read and are not in it
    bytes: int
    sha256: str

    @staticmethod
    def from_json(content: JsonObject) -> ShardFile:
        """Raises KeyError, TypeError or ValueError for anything but a shard's entry."""
        return ShardFile(
            name=parse_text(content["name"]),
            sha256=parse_text(content["sha256"]),
            records=parse_count(content["records"]),
            failed=parse_count(content["failed"]),
            bytes=parse_count(content["bytes"]),
        )


@dataclass(frozen=True)
class Manifest:
    """One split of a prepared data set.

    Written once all shards exist, and equal whichever processes wrote them in whatever order.
    """

    path: Path
    name: str
    title: str
    split: str
    unit: str
    license: str  # a short name; the terms are at the source
    files: tuple[ShardFile, ...]
    stats: Mapping[str, object]  # `DatasetStats.summary`
    settings: Mapping[str, object]
    versions: Mapping[str, str]  # of the libraries that encoded the records
    notes: tuple[str, ...] = ()  # of the source: what it does not use, and what looks wrong

    @property
    def failed(self) -> int:
        """The number of records that could not be read."""
        return sum(file.failed for file in self.files)

    def to_json(self) -> JsonObject:
        """Returns the manifest as it is written, with a checksum of itself."""
        content = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in _TEXTS},
            "failed": self.failed,
            "bytes": sum(file.bytes for file in self.files),
            "shards": len(self.files),
            **self.stats,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "files": [vars(file) for file in self.files],
            **({"notes": list(self.notes)} if self.notes else {}),
        }
        return with_checksum(content)


def manifest_path(folder: Path, split: str) -> Path:
    """Returns the path of a split's manifest."""
    return folder / f"manifest-{split}.json"


def write(manifest: Manifest) -> None:
    """Writes a manifest; raises UserError if that fails."""
    write_file(manifest.path, json.dumps(manifest.to_json(), indent=1) + "\n")


def read(folder: Path, split: str) -> Manifest | None:
    """Returns the manifest of a split, or None; raises UserError for a damaged or older one."""
    path = manifest_path(folder, split)
    if not is_file(path):
        return None
    content = read_json(path)
    if content.get("format") != FORMAT:
        what = f"is of format {content.get('format')!r}, and this version reads {FORMAT}"
        raise UserError(what, where=path, hint="prepare the data set again, into another folder")
    try:
        return Manifest(
            path=path,
            **{name: parse_text(content[name]) for name in _TEXTS},
            files=tuple(ShardFile.from_json(file) for file in content["files"]),
            stats=check_summary({name: x for name, x in content.items() if name not in _KEYS}),
            settings={**content["settings"]},
            versions={name: parse_text(version) for name, version in content["versions"].items()},
            notes=tuple(map(parse_text, content.get("notes", ()))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        hint = f"delete it and {AGAIN}"
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(f"is not a manifest ({reason})", where=path, hint=hint) from error


def read_json(path: Path, again: str = AGAIN) -> JsonObject:
    """Returns the object in a file of a shard job; raises UserError if it is damaged.

    again: how to write it again, for the message.
    """
    return read_verified(path, what="is damaged", hint=f"delete it and {again}")


def sha256(path: Path) -> str:
    """Returns the checksum of a file in hexadecimal; raises UserError if it cannot be read."""
    try:
        with open_file(path) as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path, hint=AGAIN) from error


def verify(manifest: Manifest) -> None:
    """Reads every shard; raises UserError for the first that is missing or has changed."""
    for file in manifest.files:
        path = manifest.path.parent / file.name
        if sha256(path) != file.sha256:
            what = "is not what was written: its checksum differs"
            raise UserError(what, where=path, hint=f"delete it and {AGAIN}")
