"""Memory that batches are stacked into again and again: a fresh page costs more than what is written into it.

A slab holds one batch, and the next one once nobody holds an array that lies in it. Where a process loads for itself, slabs
are memory of its own (`Stack`). Loader processes write into files in memory (`Send`) that the process which asked for the
batches maps as well (`Received`), so that a batch crosses over without being copied.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.errors import UserError

Batch = dict[str, Any]  # nested; arrays [b ...]

_LINE = 64  # bytes of a cache line: arrays begin at its multiples, the first behind the byte that says if a slab is held
_HELD, _FREE = 1, 0
_FILES = Path(
    "/dev/shm"
)  # files here are memory; elsewhere than on Linux a temporary folder serves


@dataclass(frozen=True)
class Place:
    """Where an array lies in a slab."""

    at: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Sent:
    """A batch in a slab of another process."""

    path: str
    places: Mapping[str, Any]  # nested as the batch is


class Stack:
    """Stacks equal nested dictionaries of arrays along a new leading axis. Threads may call it at once."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        """Returns the batch of these rows."""
        places, size = _places(rows[0], len(rows))
        try:
            slab = self._free.pop()
        except IndexError:
            slab = None
        if slab is None or len(slab) < size:
            slab = mmap.mmap(-1, size)
        whole = np.frombuffer(slab, np.uint8)
        # Whatever is cut out of `whole` holds it, not the slab: NumPy looks for the owner among arrays only.
        weakref.finalize(whole, self._free.append, slab).atexit = False
        return _fill(_arrays(whole, places), rows)


class Send:
    """Stacks as `Stack` does, in a loader process, into files of `Received.folder`. Raises UserError where memory is full."""

    def __init__(self, folder: str):
        self._folder = folder
        self._slabs: dict[str, mmap.mmap] = {}
        self._lock = threading.Lock()

    def __call__(self, rows: Sequence[Batch]) -> Sent:
        """Returns where the batch of these rows is."""
        places, size = _places(rows[0], len(rows))
        path, slab = self._take(size)
        _fill(_arrays(np.frombuffer(slab, np.uint8), places), rows)
        return Sent(path, places)

    def _take(self, size: int) -> tuple[str, mmap.mmap]:
        with self._lock:
            free = (
                path for path, slab in self._slabs.items() if slab[0] == _FREE and len(slab) >= size
            )
            path = next(free, None) or self._add(size)
            self._slabs[path][0] = _HELD
            return path, self._slabs[path]

    def _add(self, size: int) -> str:
        path = os.path.join(self._folder, f"{os.getpid()}-{len(self._slabs)}")
        self._slabs[path] = _new(path, size)
        return path

    def __reduce__(self) -> tuple[type[Send], tuple[str]]:
        return Send, (self._folder,)


class Received:
    """What loader processes send, mapped here. An array may be kept as long as it is wanted."""

    def __init__(self) -> None:
        home = _FILES if _FILES.is_dir() else None
        self._home = tempfile.TemporaryDirectory(
            prefix="mforce-", dir=home, ignore_cleanup_errors=True
        )
        self._slabs: dict[str, mmap.mmap] = {}

    @property
    def folder(self) -> str:
        """Where loader processes put their slabs."""
        return self._home.name

    def open(self, sent: Sent) -> Batch:
        """Returns a batch; its slab is free again when the last array of it is gone."""
        if (slab := self._slabs.get(sent.path)) is None:
            with open(sent.path, "r+b") as file:
                slab = self._slabs[sent.path] = mmap.mmap(file.fileno(), 0)
            os.unlink(
                sent.path
            )  # both sides have it: a name would only outlive them if they are killed
        whole = np.frombuffer(slab, np.uint8)
        weakref.finalize(whole, slab.__setitem__, 0, _FREE).atexit = False
        return _arrays(whole, sent.places)

    def close(self) -> None:
        """Forgets the slabs, and removes those that were never opened. Batches that are still held stay as they are."""
        self._slabs.clear()
        self._home.cleanup()


def _new(path: str, size: int) -> mmap.mmap:
    with open(path, "x+b") as file:
        try:
            if hasattr(
                os, "posix_fallocate"
            ):  # at once and now: a page that is not there later kills the process
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.ftruncate(file.fileno(), size)
        except OSError as error:
            os.unlink(path)
            what = (
                f"no room for a batch of {size / 2**20:.0f} MiB in shared memory ({error.strerror})"
            )
            hint = "give it more, with docker run --shm-size for one, or set data.workers=0"
            raise UserError(
                what, where=os.path.dirname(os.path.dirname(path)), hint=hint
            ) from error
        return mmap.mmap(file.fileno(), size)


def _places(row: Batch, count: int, at: int = _LINE) -> tuple[dict[str, Any], int]:
    """Where each array of a batch of `count` such rows goes, and the bytes it all takes."""
    places: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            places[name], at = _places(value, count, at)
            continue
        value = np.asarray(value)
        places[name] = Place(at, (count, *value.shape), value.dtype)
        at += -(-count * value.nbytes // _LINE) * _LINE
    return places, at


def _arrays(whole: np.ndarray, places: Mapping[str, Any]) -> Batch:
    def cut(place: Place) -> np.ndarray:
        size = int(np.prod(place.shape)) * place.dtype.itemsize
        return whole[place.at : place.at + size].view(place.dtype).reshape(place.shape)

    return {
        name: cut(place) if isinstance(place, Place) else _arrays(whole, place)
        for name, place in places.items()
    }


def _fill(batch: Batch, rows: Sequence[Batch]) -> Batch:
    for name, value in batch.items():
        values = [row[name] for row in rows]
        _fill(value, values) if isinstance(value, dict) else np.stack(values, out=value)
    return batch
