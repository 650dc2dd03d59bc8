"""The manifest of a folder of results: a line of JSON per file, by which a later run resumes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from modality_forcing.buckets import BucketPath
from modality_forcing.paths import (
    append_file,
    glob,
    is_file,
    make_folder,
    read_text,
    remove,
    write_file,
)
from modality_forcing.text_io import parse_object, split_lines

NAME = "manifest.jsonl"
_BUCKET_S = 60.0  # between two uploads: objects of buckets cannot be added to

_PREFIX = 50  # characters of a name that temporary files surely keep

Entry = Mapping[str, object]


class Manifest:
    """The entries of a folder by their key, the name of the outputs.

    Lines of a killed run that are torn are dropped. Entries are added at the end; `close` puts them
    into the order of the files, so that interrupted and uninterrupted runs leave the same bytes.
    """

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / NAME
        self.entries: dict[str, Entry] = {}
        self._written = time.monotonic()
        text = read_text(self.path) if is_file(self.path) else ""
        for line in split_lines(text):
            try:
                entry = parse_object(line)
            except ValueError:
                continue
            self.entries[str(entry.get("name"))] = entry
        if text and text != self._text():
            write_file(self.path, self._text())

    def is_current(self, name: str, wanted: Entry) -> bool:
        """Returns whether an entry has these values and the files that it names are there."""
        entry = self.entries.get(name)
        if entry is None or any(entry.get(key) != value for key, value in wanted.items()):
            return False
        outputs = entry.get("outputs")
        files = outputs if isinstance(outputs, list) else []
        return all(is_file(self.folder / str(file)) for file in files)

    def add(self, entries: Iterable[Entry]) -> None:
        """Adds entries, in place of older ones of their names."""
        added = list(entries)
        replaces = any(str(entry["name"]) in self.entries for entry in added)
        self.entries |= {str(entry["name"]): entry for entry in added}
        if isinstance(self.path, BucketPath):
            if time.monotonic() - self._written > _BUCKET_S:
                self._write()
        elif replaces:
            self._write()
        else:
            make_folder(self.folder)
            append_file(self.path, "".join(map(_line, added)))

    def close(self, order: Iterable[str]) -> None:
        """Writes the entries in the order of these names; those of other runs come first."""
        names = [name for name in order if name in self.entries]
        own = set(names)
        ordered = [name for name in self.entries if name not in own] + names
        changed = ordered != list(self.entries)
        self.entries = {name: self.entries[name] for name in ordered}
        if self.entries and (changed or isinstance(self.path, BucketPath)):
            self._write()

    def _write(self) -> None:
        write_file(self.path, self._text())
        self._written = time.monotonic()

    def _text(self) -> str:
        return "".join(map(_line, self.entries.values()))


def _line(entry: Entry) -> str:
    return json.dumps(entry) + "\n"


def remove_temp_files(out: Path, names: Iterable[str]) -> None:
    """Removes what a killed job left of files that it was writing; names: of outputs."""
    stems = [out / name for name in names]
    own = tuple(f".{stem.name}_"[:_PREFIX] for stem in stems)
    for folder in {stem.parent for stem in stems} | {out}:
        for left in glob(folder, ".*.*"):
            if left.name.startswith((f".{NAME}.", *own)):
                remove(left)
