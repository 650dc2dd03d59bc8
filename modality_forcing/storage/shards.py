"""Prepared examples in ArrayRecord shards: random access to records, and the writer of a shard.

One folder holds the shards of a data set, `<name>-<split>.array_record-00000-of-00012`, in the naming of
tensorflow-datasets; each record is an example of `data.codec`. Format: google/array_record.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from modality_forcing.data.records import Record
from modality_forcing.errors import UserError
from modality_forcing.storage import codec, manifest

# A group is what is decompressed to get at one of its records. Pictures and depth are compressed already.
_WRITING = "group_size:1,uncompressed"
_READING = (
    "readahead_buffer_size:0,max_parallelism:0"  # random access: nothing beyond the record wanted
)
_MOST_OPEN = 256  # files a source holds open; a process is often allowed 1024
_NAME = re.compile(
    r"(?P<name>.+)-(?P<split>[^-]+)\.array_record-(?P<index>\d{5,})-of-(?P<count>\d{5,})"
)
_PREPARE = "run the same mforce prepare again"


def shard_name(name: str, split: str, index: int, count: int) -> str:
    """Returns the file name of one of `count` shards."""
    return f"{name}-{split}.array_record-{index:05d}-of-{count:05d}"


class ShardWriter:
    """Writes examples into a shard that is there when, and only when, the `with` block ends well.

    Raises UserError if the file cannot be written.
    """

    def __init__(self, path: str | Path):
        self._path = Path(path)
        self._beside = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        self._count = 0

    def __enter__(self) -> ShardWriter:
        from array_record.python.array_record_module import ArrayRecordWriter

        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._beside.touch()  # the writer itself would not complain
        except OSError as error:
            raise self._unwritten(error.strerror or str(error)) from error
        self._writer = ArrayRecordWriter(str(self._beside), _WRITING)
        return self

    def write(self, example: bytes) -> None:
        """Adds one example."""
        try:
            self._writer.write(example)
        except RuntimeError as error:
            raise self._unwritten(str(error)) from error
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
                with suppress(
                    RuntimeError
                ):  # a full disk may tell itself again, over the error that is on its way
                    self._writer.close()
        finally:
            self._beside.unlink(missing_ok=True)

    def _finish(self) -> None:
        try:
            self._writer.close()
            if (written := _open(self._beside).num_records()) != self._count:
                raise self._unwritten(f"{written} of {self._count} examples arrived")
            with open(self._beside, "rb") as opened:
                os.fsync(opened.fileno())
            os.replace(self._beside, self._path)
        except (OSError, RuntimeError) as error:
            raise self._unwritten(getattr(error, "strerror", None) or str(error)) from error

    def _unwritten(self, reason: str) -> UserError:
        hint = "make room, or choose a folder you may write to"
        return UserError(f"cannot be written ({reason})", where=self._path, hint=hint)


@dataclass(frozen=True)
class Shards:
    """The records of one split of a prepared folder, in order; each process opens a shard when it first reads from it.

    split: may be left out where the folder holds one. pixels: if false, pictures are left black and not decoded. Raises
    UserError at once for a folder without shards, a split that is not there, or shards that are missing, and from reading,
    naming the shard, for one that is truncated or holds something else.
    """

    folder: Path
    split: str = ""
    pixels: bool = True
    _files: tuple[Path, ...] = field(init=False, repr=False, compare=False)
    _ends: tuple[int, ...] = field(
        init=False, repr=False, compare=False
    )  # records up to the end of each shard
    _opened: dict[int, Any] = field(init=False, repr=False, compare=False)
    _lock: threading.Lock = field(
        init=False, repr=False, compare=False
    )  # held to open a shard, never to read

    def __post_init__(self) -> None:
        folder = Path(self.folder)
        name, split, count = _find(folder, self.split)
        files = tuple(folder / shard_name(name, split, index, count) for index in range(count))
        known = manifest.read(folder, split)
        counts = [_count(path) for path in files] if known is None else _counts(known, files)
        ends, total = [], 0
        for records in counts:
            total += records
            ends.append(total)
        set_once = object.__setattr__
        set_once(self, "folder", folder)
        set_once(self, "split", split)
        set_once(self, "_files", files)
        set_once(self, "_ends", tuple(ends))
        set_once(self, "_opened", {})
        set_once(self, "_lock", threading.Lock())

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        shard, offset = self._place(index)
        content = self._read(shard, offset)
        try:
            return codec.decode(content, self.pixels)
        except ValueError as error:
            raise UserError(
                f"record {offset} is {error}", where=self._files[shard], hint=_PREPARE
            ) from error

    def example(self, index: int) -> bytes:
        """Returns a record as stored: see `data.codec`."""
        return self._read(*self._place(index))

    def __reduce__(self) -> tuple[type[Shards], tuple[Path, str, bool]]:
        return Shards, (self.folder, self.split, self.pixels)  # readers stay where they were opened

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect_right(self._ends, index)
        return shard, int(index) - (self._ends[shard - 1] if shard else 0)

    def _read(self, shard: int, offset: int) -> bytes:
        reader = self._opened.get(shard)
        if reader is None:
            reader = self._open(shard)
        try:
            return reader.read([offset])[0]
        except (RuntimeError, IndexError) as error:
            reason = str(error).partition(";")[0]
            raise UserError(
                f"record {offset} cannot be read ({reason})",
                where=self._files[shard],
                hint=_damaged(self._files[shard]),
            ) from error

    def _open(self, shard: int) -> Any:
        with self._lock:
            if shard not in self._opened:
                expected = self._ends[shard] - (self._ends[shard - 1] if shard else 0)
                reader = _open(self._files[shard])
                if reader.num_records() != expected:
                    what = f"holds {reader.num_records()} records, not {expected}: truncated, or another file"
                    raise UserError(
                        what, where=self._files[shard], hint=_damaged(self._files[shard])
                    )
                while len(self._opened) >= _MOST_OPEN:
                    del self._opened[next(iter(self._opened))]  # closed once nobody reads from it
                self._opened[shard] = reader
            return self._opened[shard]


def splits(folder: Path) -> tuple[str, ...]:
    """Returns the splits of which a prepared folder holds shards, by name; raises UserError if it is no folder."""
    if not folder.is_dir():
        raise UserError("no such folder", where=folder, hint="give the --out of mforce prepare")
    found = (_NAME.fullmatch(path.name) for path in folder.iterdir())
    return tuple(sorted({parts["split"] for parts in found if parts}))


def _damaged(path: Path) -> str:
    return f"delete {path.name} and {_PREPARE}"


def _find(folder: Path, split: str) -> tuple[str, str, int]:
    """The name, split and number of the shards of a folder."""
    if not folder.is_dir():
        raise UserError("no such folder", where=folder, hint="give the --out of mforce prepare")
    found: dict[str, dict[tuple[str, int], set[int]]] = {}
    for path in folder.iterdir():
        if parts := _NAME.fullmatch(path.name):
            several = found.setdefault(parts["split"], {})
            several.setdefault((parts["name"], int(parts["count"])), set()).add(int(parts["index"]))
    if not found:
        raise UserError("holds no shards", where=folder, hint="give the --out of mforce prepare")
    if split not in found and (split or len(found) > 1):
        what = f"has no split {split!r}" if split else "holds several splits"
        raise UserError(what, where=folder, hint=f"choose one of {', '.join(sorted(found))}")
    split = split or next(iter(found))
    if len(found[split]) > 1:
        sets = " and ".join(sorted(f"{name} in {count}" for name, count in found[split]))
        raise UserError(
            f"holds the shards of two runs ({sets})",
            where=folder,
            hint="keep one, delete the other",
        )
    (name, count), there = next(iter(found[split].items()))
    missing = sorted(set(range(count)) - there)
    if missing:
        few = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UserError(
            f"lacks {len(missing)} of {count} shards of {split} ({few})",
            where=folder,
            hint=_PREPARE,
        )
    return name, split, count


def _counts(known: manifest.Manifest, files: tuple[Path, ...]) -> list[int]:
    listed = {file.name: file.records for file in known.files}
    if set(listed) != {path.name for path in files}:
        raise UserError(
            "does not list the shards beside it", where=known.path, hint=f"delete it and {_PREPARE}"
        )
    return [listed[path.name] for path in files]


def _count(path: Path) -> int:
    reader = _open(path)
    if not reader.num_records() and not reader.writer_options_string():
        raise UserError("is truncated, or no ArrayRecord", where=path, hint=_damaged(path))
    return reader.num_records()


def _open(path: Path) -> Any:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        with open(path, "rb"):
            pass  # the reader itself would not complain of a file that may not be read
        return ArrayRecordReader(str(path), _READING)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot be opened ({reason})", where=path, hint="check the path and its permissions"
        ) from error
