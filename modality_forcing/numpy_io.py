"""Reads and writes .npy and .npz files: whatever is wrong with one is one line.

`np.load` also takes zips and pickles for arrays, raises a dozen kinds of errors, and reads an array
of a .npz without looking at its checksum.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from modality_forcing.errors import UserError
from modality_forcing.paths import is_address, open_file, os_error, require_file, size

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}  # (3, 0) is for names of fields, which arrays of numbers lack
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_CHUNK = 2**24  # bytes


@runtime_checkable
class _File(Protocol):
    """A file, or a member of a zip, open for reading."""

    def read(self, size: int = ..., /) -> bytes: ...

    def tell(self) -> int: ...


def read_npy(path: str | Path, hint: str) -> np.ndarray:
    """Returns the array of a .npy, as stored. Raises UserError with the hint if it is damaged."""
    path = require_file(path, hint)
    with _one_line(path, ".npy", hint), open_file(path) as file:
        return _read_array(file, size(path))


def map_npy(path: str | Path, hint: str) -> np.ndarray:
    """Returns the array of a .npy in memory that all processes of a machine share; read only.

    That of a bucket is read into the memory of each.
    """
    path = require_file(path, hint)
    if is_address(path):
        return read_npy(path, hint)
    with _one_line(path, ".npy", hint):
        return np.lib.format.open_memmap(path, mode="r")


def npy_bytes(array: np.ndarray) -> bytes:
    """Returns the content of a .npy of an array of numbers."""
    content = io.BytesIO()
    np.lib.format.write_array(content, array, allow_pickle=False)
    return content.getvalue()


def npy_dtype(path: str | Path) -> np.dtype | None:
    """Returns the type of a .npy's array from its header; None if it cannot be read."""
    try:
        with open_file(path) as file:
            return _read_header(file)[2]
    except Exception:  # reading the array reports it
        return None


def read_npz(path: str | Path, names: Sequence[str], hint: str) -> dict[str, np.ndarray]:
    """Returns arrays of a .npz by name, as stored; their checksums are verified.

    Raises UserError with the hint, in which "{}" stands for a name, if the file is damaged, lacks
    an array or holds something else than numbers under its name.
    """
    path, first = require_file(path, hint), hint.format(names[0])
    with _one_line(path, ".npz", first), open_file(path) as file:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise UserError("is a single array, not an .npz", where=path, hint=first)
        with zipfile.ZipFile(file) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            for name in names:
                if name not in members:
                    what = f"has no array `{name}`, but {', '.join(members) or 'nothing'}"
                    raise UserError(what, where=path, hint=hint.format(name))
            arrays = {name: _read_member(archive, members[name]) for name in names}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiub":
            raise UserError(f"`{name}` has type {array.dtype}, not numbers", where=path, hint=first)
    return arrays


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    if info.flag_bits & 1:
        raise _Damage("it is encrypted")
    if info.compress_type not in _METHODS:
        raise _Damage(f"compressed by an unknown method, {info.compress_type}")
    with archive.open(info) as file:
        array = _read_array(file, info.file_size)
        while file.read(_CHUNK):  # up to the end, where zipfile compares the checksum
            pass
    return array


def _read_array(file: _File, size: int) -> np.ndarray:
    """Reads an array from a file of so many bytes. Raises many kinds of errors."""
    shape, by_columns, dtype = _read_header(file)
    if dtype.hasobject:
        raise _Damage("it holds Python objects, not numbers")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize > size - file.tell():
        raise _Damage("it is cut short")
    array = np.empty(count, dtype)
    unfilled = array.view(np.uint8)
    while unfilled.size:
        content = np.frombuffer(file.read(min(unfilled.size, _CHUNK)), np.uint8)
        if not content.size:
            raise _Damage("it is cut short")
        unfilled[: content.size] = content
        unfilled = unfilled[content.size :]
    return array.reshape(shape, order="F" if by_columns else "C")


def _read_header(file: _File) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise _Damage(f"of the unknown version {version}")
    return _HEADERS[version](file)


class _Damage(Exception):
    """What is wrong, in words for the user."""


@contextmanager
def _one_line(path: Path, kind: str, hint: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib, lzma, ast and numpy share no base class
        if isinstance(error, OSError) and error.errno is not None:
            raise os_error(error, path, "read", hint) from error
        reason = str(error) if isinstance(error, _Damage) else "damaged, or another format"
        what = f"cannot be read as a {kind} of numbers ({reason})"
        raise UserError(what, where=path, hint=hint) from error
