"""Prepared examples in ArrayRecord shards: random access to records, and the writer of a shard.

A folder holds the shards of a data set, `<name>-<split>.array_record-00000-of-00012`, named as by
tensorflow-datasets; each record is an example of `storage.codec`. Format: google/array_record.
"""

from __future__ import annotations

import re
import secrets
import threading
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Protocol, runtime_checkable

from modality_forcing.data.records import Record
from modality_forcing.errors import UserError
from modality_forcing.mirror import Mirror
from modality_forcing.paths import (
    as_path,
    is_address,
    list_dir,
    make_folder,
    move_file,
    os_error,
    require_file,
    size,
)
from modality_forcing.storage import codec, manifest

# Reading a record decompresses its group. Images and depth are compressed already.
_WRITING = "group_size:1,uncompressed"
_READING = "readahead_buffer_size:0,max_parallelism:0"  # random access: no read-ahead
_MAX_OPEN = 256  # files a source holds open; a process is often allowed 1024
_NAME = re.compile(
    r"(?P<name>.+)-(?P<split>[^-]+)\.array_record-(?P<index>\d{5,})-of-(?P<count>\d{5,})"
)
_NOT_PREPARED = "give the --out of mforce prepare"


@runtime_checkable
class _Reader(Protocol):
    """array_record's ArrayRecordReader, which has no types."""

    def num_records(self) -> int: ...

    def read(self, indices: Sequence[int]) -> Sequence[bytes]: ...

    def writer_options_string(self) -> str: ...


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """Returns the file name of one of `count` shards."""
    return f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


class ShardWriter:
    """Writes examples into a shard, which appears only when the `with` block ends well.

    Raises UserError if the file cannot be written. A shard of a bucket grows in a temporary folder.

    Attributes:
      bytes, sha256: of the finished shard, known after the block.
    """

    def __init__(self, path: str | Path):
        self._path = as_path(path)
        self._mirror = Mirror(self._path.parent)  # array_record writes to disks only
        name = f".{self._path.name}.{secrets.token_hex(4)}"
        self._temporary = self._mirror.local / name
        self._count = 0

    def __enter__(self) -> ShardWriter:
        from array_record.python.array_record_module import ArrayRecordWriter

        try:
            make_folder(self._path.parent)
            self._temporary.touch()  # the writer itself does not report errors
        except OSError as error:
            raise self._write_error(error) from error
        self._writer = ArrayRecordWriter(str(self._temporary), _WRITING)
        return self

    def write(self, example: bytes) -> None:
        """Adds one example."""
        try:
            self._writer.write(example)
        except RuntimeError as error:
            raise self._write_error(error) from error
        self._count += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
            else:
                with suppress(RuntimeError):  # a full disk may raise again, over the first error
                    self._writer.close()
        finally:
            self._temporary.unlink(missing_ok=True)
            self._mirror.discard()

    def _finish(self) -> None:
        try:
            self._writer.close()
            if (written := _open(self._temporary).num_records()) != self._count:
                raise RuntimeError(f"{written} of {self._count} examples arrived")
            self.bytes, self.sha256 = size(self._temporary), manifest.sha256(self._temporary)
            move_file(self._temporary, self._path)
        except (OSError, RuntimeError) as error:
            raise self._write_error(error) from error

    def _write_error(self, error: Exception) -> UserError:
        hint = "make room, or choose a folder you may write to"
        return os_error(error, self._path, "written", hint)


@dataclass(frozen=True)
class Shards:
    """The records of one split of a prepared folder, in order; opens each shard at its first read.

    split: optional if the folder holds one. pixels: if false, images are black and not decoded.
    again: how to write them again, for errors.
    Raises UserError at once for a folder without shards, an unknown split, or missing shards, and
    from reading, naming the shard, for one that is truncated or holds something else.
    """

    folder: Path
    split: str = ""
    pixels: bool = True
    again: str = manifest.AGAIN
    _files: tuple[Path, ...] = field(init=False, repr=False, compare=False)
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)  # records up to its end
    _readers: dict[int, _Reader] = field(init=False, repr=False, compare=False)
    _lock: threading.Lock = field(init=False, repr=False, compare=False)  # to open, not to read

    def __post_init__(self) -> None:
        folder = as_path(self.folder)
        name, split, count = _find(folder, self.split, self.again)
        files = tuple(folder / shard_name(name, split, index, count) for index in range(count))
        found = manifest.read(folder, split)
        if found is None:
            counts = [_count(path, self.again) for path in files]
        else:
            counts = _counts(found, files, self.again)
        set_once = object.__setattr__
        set_once(self, "folder", folder)
        set_once(self, "split", split)
        set_once(self, "_files", files)
        set_once(self, "_ends", tuple(accumulate(counts)))
        set_once(self, "_readers", {})
        set_once(self, "_lock", threading.Lock())

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        shard, offset = self._locate(index)
        content = self._read(shard, offset)
        try:
            return codec.decode(content, self.pixels)
        except ValueError as error:
            what = f"record {offset} is {error}"
            raise UserError(what, where=self._files[shard], hint=self.again) from error

    def example(self, index: int) -> bytes:
        """Returns a record as stored: see `storage.codec`."""
        return self._read(*self._locate(index))

    def __reduce__(self) -> tuple[type[Shards], tuple[Path, str, bool, str]]:
        return Shards, (
            self.folder,
            self.split,
            self.pixels,
            self.again,
        )  # without the open readers

    def _locate(self, index: int) -> tuple[int, int]:
        """Returns the shard of a record and its number in the shard."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        return shard, int(index) - self._start(shard)

    def _start(self, shard: int) -> int:
        return self._ends[shard - 1] if shard else 0

    def _read(self, shard: int, offset: int) -> bytes:
        reader = self._readers.get(shard)
        if reader is None:
            reader = self._open(shard)
        try:
            return reader.read([offset])[0]
        except (RuntimeError, IndexError) as error:
            path, reason = self._files[shard], str(error).partition(";")[0]
            what = f"record {offset} cannot be read ({reason})"
            raise UserError(what, where=path, hint=_replace_hint(path, self.again)) from error

    def _open(self, shard: int) -> _Reader:
        with self._lock:
            if shard not in self._readers:
                path, expected = self._files[shard], self._ends[shard] - self._start(shard)
                reader = _open(path, self.again)
                if (count := reader.num_records()) != expected:
                    what = f"holds {count} records, not {expected}: truncated, or another file"
                    raise UserError(what, where=path, hint=_replace_hint(path, self.again))
                while len(self._readers) >= _MAX_OPEN:
                    del self._readers[next(iter(self._readers))]  # closed after its last read
                self._readers[shard] = reader
            return self._readers[shard]


def splits(folder: Path) -> tuple[str, ...]:
    """Returns the splits that have shards, sorted; raises UserError if it is not a folder."""
    return tuple(sorted(_list_shards(folder)))


def _list_shards(folder: Path) -> dict[str, dict[tuple[str, int], set[int]]]:
    """Returns the indices of the shards in a folder, by split, then by name and count."""
    found: dict[str, dict[tuple[str, int], set[int]]] = {}
    for path in list_dir(folder, _NOT_PREPARED):
        if parts := _NAME.fullmatch(path.name):
            runs = found.setdefault(parts["split"], {})
            runs.setdefault((parts["name"], int(parts["count"])), set()).add(int(parts["index"]))
    return found


def _find(folder: Path, split: str, again: str) -> tuple[str, str, int]:
    """Returns the name, split and number of the shards of a folder."""
    found = _list_shards(folder)
    if not found:
        raise UserError("holds no shards", where=folder, hint=_NOT_PREPARED)
    if split not in found and (split or len(found) > 1):
        what = f"has no split {split!r}" if split else "holds several splits"
        raise UserError(what, where=folder, hint=f"choose one of {', '.join(sorted(found))}")
    split = split or next(iter(found))
    if len(found[split]) > 1:
        runs = " and ".join(sorted(f"{name} in {count}" for name, count in found[split]))
        what = f"holds the shards of two runs ({runs})"
        raise UserError(what, where=folder, hint="keep one, delete the other")
    (name, count), indices = next(iter(found[split].items()))
    if missing := sorted(set(range(count)) - indices):
        few = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        what = f"lacks {len(missing)} of {count} shards of {split} ({few})"
        raise UserError(what, where=folder, hint=again)
    return name, split, count


def _counts(found: manifest.Manifest, files: tuple[Path, ...], again: str) -> list[int]:
    listed = {file.name: file.records for file in found.files}
    if set(listed) != {path.name for path in files}:
        hint = f"delete it and {again}"
        raise UserError("does not list the shards beside it", where=found.path, hint=hint)
    return [listed[path.name] for path in files]


def _count(path: Path, again: str) -> int:
    reader = _open(path, again)
    if not reader.num_records() and not reader.writer_options_string():
        what = "is truncated, or not an ArrayRecord"
        raise UserError(what, where=path, hint=_replace_hint(path, again))
    return reader.num_records()


def _replace_hint(path: Path, again: str) -> str:
    return f"delete {path.name} and {again}"


def _open(path: Path, again: str = manifest.AGAIN) -> _Reader:
    from array_record.python.array_record_module import ArrayRecordReader

    if str(path).startswith("s3://"):
        hint = "copy them to a disk or to gs://"
        raise UserError("shards are read from disks and gs:// only", where=path, hint=hint)
    try:
        if is_address(path):
            require_file(path, again)
        else:
            with open(path, "rb"):
                pass  # the reader itself does not report a missing permission
        return ArrayRecordReader(str(path), _READING)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "check the path and its permissions"
        raise UserError(f"cannot be opened ({reason})", where=path, hint=hint) from error
