"""What a prepared folder holds, `manifest-<split>.json`: its shards with their checksums, what is in them, how it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modality_forcing.atomic_io import write_file
from modality_forcing.errors import UserError

FORMAT = 1  # of the manifest and of the examples; a reader of another refuses
_AGAIN = "run the same mforce prepare again"


@dataclass(frozen=True)
class ShardFile:
    """One shard: its file name, its records, the records that could not be read and are not in it, bytes, SHA-256."""

    name: str
    records: int
    bad: int
    bytes: int
    sha256: str

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> ShardFile:
        """Raises KeyError, TypeError or ValueError for anything but a shard's entry."""
        numbers = {name: int(content[name]) for name in ("records", "bad", "bytes")}
        return ShardFile(name=str(content["name"]), sha256=str(content["sha256"]), **numbers)


@dataclass(frozen=True)
class Manifest:
    """One split of a prepared data set. Written when all shards are there, and the same whoever wrote them in whatever order."""

    path: Path
    name: str
    title: str
    split: str
    unit: str
    licence: str  # in a word: its terms are to be read at the source
    files: tuple[ShardFile, ...]
    holds: Mapping[str, Any]  # data.tally.Tally.summary
    settings: Mapping[str, Any]
    versions: Mapping[str, str]  # of what encoded them

    @property
    def bad(self) -> int:
        """The records that could not be read."""
        return sum(file.bad for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Returns the manifest as it is written."""
        return {
            "format": FORMAT,
            "name": self.name,
            "title": self.title,
            "split": self.split,
            "unit": self.unit,
            "licence": self.licence,
            "bad": self.bad,
            "bytes": sum(file.bytes for file in self.files),
            "shards": len(self.files),
            **self.holds,
            "settings": dict(self.settings),
            "versions": dict(self.versions),
            "files": [vars(file) for file in self.files],
        }


def manifest_path(folder: Path, split: str) -> Path:
    """Returns where the manifest of a split is."""
    return folder / f"manifest-{split}.json"


def write(manifest: Manifest) -> None:
    """Puts a manifest in its place; raises UserError if it cannot be written."""
    write_file(manifest.path, json.dumps(manifest.to_json(), indent=1) + "\n")


def read(folder: Path, split: str) -> Manifest | None:
    """Returns the manifest of a split, None where there is none; raises UserError for a damaged one or another format."""
    path = manifest_path(folder, split)
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("format") != FORMAT:
        what = f"is of format {content.get('format')!r}, and this version reads {FORMAT}"
        raise UserError(what, where=path, hint="prepare the data set again, into another folder")
    about = (
        "format",
        "name",
        "title",
        "split",
        "unit",
        "licence",
        "bad",
        "bytes",
        "shards",
        "settings",
        "versions",
        "files",
    )
    try:
        return Manifest(
            path=path,
            **{name: str(content[name]) for name in ("name", "title", "split", "unit", "licence")},
            files=tuple(ShardFile.from_json(file) for file in content["files"]),
            holds={name: value for name, value in content.items() if name not in about},
            settings=dict(content["settings"]),
            versions=dict(content["versions"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"is no manifest ({error})", where=path, hint=f"delete it and {_AGAIN}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a file that prepare wrote; raises UserError if it cannot be read or holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "damaged"
        raise UserError(
            f"cannot be read ({reason})", where=path, hint=f"delete it and {_AGAIN}"
        ) from error
    if not isinstance(content, dict):
        raise UserError("is damaged", where=path, hint=f"delete it and {_AGAIN}")
    return content


def sha256(path: Path) -> str:
    """Returns the checksum of a file, in hexadecimal digits; raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=path, hint=_AGAIN) from error


def verify(manifest: Manifest) -> None:
    """Reads every shard; raises UserError for the first that is missing or not the one that was written."""
    for file in manifest.files:
        path = manifest.path.parent / file.name
        if sha256(path) != file.sha256:
            raise UserError(
                "is not what was written: its checksum differs",
                where=path,
                hint=f"delete it and {_AGAIN}",
            )
