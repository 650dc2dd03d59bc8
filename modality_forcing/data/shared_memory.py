"""Pooled memory for batches: a fresh page costs more than writing into it.

A slab is a buffer for one batch, and is reused when the batch's last array is freed. A process that
loads for itself has private slabs (`BufferedStacker`). Loader processes write into files in memory
(`SharedMemorySender`) which the main process maps too (`SharedMemoryReceiver`), without copying.
"""

from __future__ import annotations

import errno
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
from modality_forcing.paths import cause, hint_for, reason

Batch = dict[str, Any]  # nested; arrays [b ...]
ArraySpecs = dict[str, object]  # nested as the batch is

# Bytes of a cache line. Arrays start at multiples; byte 0 of a slab says whether it is in use.
_LINE = 64
_IN_USE, _FREE = 1, 0
_SHM = Path("/dev/shm")  # files here are memory; elsewhere than on Linux a temporary folder serves


@dataclass(frozen=True)
class ArraySpec:
    """The position of an array in a slab."""

    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class BatchHandle:
    """A batch in a slab of another process."""

    path: str
    specs: ArraySpecs


class BufferedStacker:
    """Stacks nested dictionaries of arrays along a new leading axis. Thread-safe."""

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        """Returns the batch of these rows."""
        specs, size = _layout(rows[0], len(rows))
        try:
            slab = self._free.pop()
        except IndexError:
            slab = None
        if slab is None or len(slab) < size:
            slab = mmap.mmap(-1, size)
        buffer = np.frombuffer(slab, np.uint8)
        # Views of `buffer` keep it alive and not the slab: NumPy's `base` is always an array.
        weakref.finalize(buffer, self._free.append, slab).atexit = False
        return _fill(_views(buffer, specs), rows)


class SharedMemorySender:
    """Stacks rows in a loader process, into files of `SharedMemoryReceiver.folder`.

    Raises UserError if the memory is full.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._slabs: dict[str, mmap.mmap] = {}
        self._lock = threading.Lock()

    def __call__(self, rows: Sequence[Batch]) -> BatchHandle:
        """Returns a handle to the batch of these rows."""
        specs, size = _layout(rows[0], len(rows))
        path, slab = self._acquire(size)
        _fill(_views(np.frombuffer(slab, np.uint8), specs), rows)
        return BatchHandle(path, specs)

    def _acquire(self, size: int) -> tuple[str, mmap.mmap]:
        with self._lock:
            free = (path for path, slab in self._slabs.items() if slab[0] == _FREE)
            path = next((path for path in free if len(self._slabs[path]) >= size), None)
            if path is None:
                path = os.path.join(self._folder, f"{os.getpid()}-{len(self._slabs)}")
                self._slabs[path] = _create(path, size)
            slab = self._slabs[path]
            slab[0] = _IN_USE
            return path, slab

    def __reduce__(self) -> tuple[type[SharedMemorySender], tuple[str]]:
        return SharedMemorySender, (self._folder,)


class SharedMemoryReceiver:
    """Maps batches of loader processes. Their arrays stay valid as long as they are referenced."""

    def __init__(self) -> None:
        parent = _SHM if _SHM.is_dir() else None
        self._directory = tempfile.TemporaryDirectory(
            prefix=f"mforce-{os.getpid()}-", dir=parent, ignore_cleanup_errors=True
        )
        self._slabs: dict[str, mmap.mmap] = {}

    @property
    def folder(self) -> str:
        """The folder of the loader processes' slabs."""
        return self._directory.name

    def open(self, handle: BatchHandle) -> Batch:
        """Returns a batch; its slab is free again when the last array is freed."""
        if (slab := self._slabs.get(handle.path)) is None:
            with open(handle.path, "r+b") as file:
                slab = self._slabs[handle.path] = mmap.mmap(file.fileno(), 0)
            os.unlink(handle.path)  # both sides map it; the name would outlive a killed process
        buffer = np.frombuffer(slab, np.uint8)
        weakref.finalize(buffer, slab.__setitem__, 0, _FREE).atexit = False
        return _views(buffer, handle.specs)

    def close(self) -> None:
        """Drops the slabs and removes unopened ones. Batches that are still held stay valid."""
        self._slabs.clear()
        self._directory.cleanup()


def no_shared_memory(use: str, error: OSError) -> UserError:
    """Returns an error of shared memory, or of too many open files, in one line."""
    default = "give it more, with docker run --shm-size for one"
    hint = default if cause(error) == errno.ENOSPC else hint_for(error, "make it writable")
    where = _SHM if _SHM.is_dir() else tempfile.gettempdir()
    what = f"no room for {use} in shared memory ({reason(error)})"
    return UserError(what, where=where, hint=f"{hint}, or set data.workers=0")


def _create(path: str, size: int) -> mmap.mmap:
    with open(path, "x+b") as file:
        try:
            if hasattr(os, "posix_fallocate"):  # all pages now: a missing one later is a SIGBUS
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                os.ftruncate(file.fileno(), size)
        except OSError as error:
            os.unlink(path)
            raise no_shared_memory(f"a batch of {size / 2**20:.0f} MiB", error) from error
        return mmap.mmap(file.fileno(), size)


def _layout(row: Batch, count: int, offset: int = _LINE) -> tuple[ArraySpecs, int]:
    """Returns where each array of a batch of `count` such rows goes, and the size in bytes."""
    specs: ArraySpecs = {}
    for name, value in row.items():
        if isinstance(value, dict):
            specs[name], offset = _layout(value, count, offset)
            continue
        value = np.asarray(value)
        specs[name] = ArraySpec(offset, (count, *value.shape), value.dtype)
        offset += -(-count * value.nbytes // _LINE) * _LINE
    return specs, offset


def _views(buffer: np.ndarray, specs: Mapping[str, object]) -> Batch:
    """Returns the arrays in a buffer, nested as the specs are."""
    batch: Batch = {}
    for name, spec in specs.items():
        if isinstance(spec, ArraySpec):
            end = spec.offset + int(np.prod(spec.shape)) * spec.dtype.itemsize
            batch[name] = buffer[spec.offset : end].view(spec.dtype).reshape(spec.shape)
        elif isinstance(spec, Mapping):
            batch[name] = _views(buffer, spec)
    return batch


def _fill(batch: Batch, rows: Sequence[Batch]) -> Batch:
    """Stacks rows into the arrays of a batch."""
    for name, value in batch.items():
        values = [row[name] for row in rows]
        if isinstance(value, dict):
            _fill(value, values)
        else:
            np.stack(values, out=value)
    return batch
