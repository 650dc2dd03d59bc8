"""Safetensors files, read and written tensor by tensor: no more than one of them is in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from modality_forcing import paths
from modality_forcing.errors import UserError
from modality_forcing.mirror import staged
from modality_forcing.text_io import parse_object

_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int8): "I8",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_METADATA = "__metadata__"
_LENGTH = 8  # bytes that hold the length of a header
_ALIGNED = 8  # bytes: of a header, with its length
_BLOCK = 512  # elements along an axis that are copied at a time


class Tensor(NamedTuple):
    """A tensor to write; its content may have another dtype, which is converted."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    content: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its bytes in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


class Stored(NamedTuple):
    """A tensor in a file: its type and shape, and the byte at which its numbers begin."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class File:
    """A safetensors file on a disk: what its header says, and its tensors on request."""

    path: Path
    metadata: Mapping[str, str]
    tensors: Mapping[str, Stored]

    def read(self, name: str) -> np.ndarray:
        """Returns a tensor in memory of its own; UserError if the disk does not give it."""
        dtype, shape, start = self.tensors[name]
        count = math.prod(shape)
        try:
            array = np.fromfile(self.path, dtype, count, offset=start)
        except OSError as error:
            raise paths.os_error(error, self.path, "read") from error
        if array.size != count:
            raise UserError(f"ends within {name}", where=self.path, hint="copy it again")
        return array.reshape(shape)


def open_file(path: Path) -> File:
    """Returns a file with its header read and compared with its size by the format's own library.

    Raises UserError for a file that is cut off or no safetensors, and for types of numbers that
    weights do not have.
    """
    from safetensors import SafetensorError, safe_open

    paths.require_file(path)
    try:
        with safe_open(path, "np"):  # compares offsets, shapes and the length of the file
            pass
        with open(path, "rb") as opened:
            length = int.from_bytes(opened.read(_LENGTH), "little")
            header = parse_object(opened.read(length).decode())
    except (SafetensorError, ValueError) as error:
        what = f"is cut off or no safetensors file ({' '.join(str(error).split())})"
        raise UserError(what, where=path, hint="copy it again") from error
    except OSError as error:
        raise paths.os_error(error, path, "read") from error
    metadata = header.pop(_METADATA, {})
    if odd := {entry["dtype"] for entry in header.values()} - _DTYPES.keys():
        what = f"holds numbers of type {sorted(odd)[0]}"
        raise UserError(what, where=path, hint=f"known are {', '.join(sorted(_DTYPES))}")
    start = _LENGTH + length
    tensors = {
        name: Stored(
            _DTYPES[entry["dtype"]], tuple(entry["shape"]), start + entry["data_offsets"][0]
        )
        for name, entry in header.items()
    }
    return File(path, metadata, tensors)


def write(
    folder: Path,
    stem: str,
    tensors: Sequence[Tensor],
    max_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Writes `stem.safetensors` into a folder (made if new), or several such files and their index.

    The index is `stem.safetensors.index.json`, as the hub's libraries read it. A file has at most
    max_bytes of tensors, or one tensor. metadata: texts by name, in the header of each file.
    Returns the files, the index last. Equal content gives equal bytes.

    Raises ValueError for content of another shape, OSError if a file cannot be written.
    """
    paths.make_folder(folder)
    parts: list[list[Tensor]] = [[]]
    for tensor in tensors:
        used = sum(other.nbytes for other in parts[-1])
        if max_bytes and parts[-1] and used + tensor.nbytes > max_bytes:
            parts.append([])
        parts[-1].append(tensor)
    names = [f"{stem}-{i:05}-of-{len(parts):05}.safetensors" for i in range(1, len(parts) + 1)]
    names = names if len(parts) > 1 else [f"{stem}.safetensors"]
    for name, part in zip(names, parts, strict=True):
        with staged(folder) as local:  # in a bucket, one file after the other
            _write_file(local / name, part, metadata or {})
    if len(parts) == 1:
        return [folder / names[0]]
    total = sum(tensor.nbytes for tensor in tensors)
    files = {t.name: name for name, part in zip(names, parts, strict=True) for t in part}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    names.append(f"{stem}.safetensors.index.json")
    paths.write_file(folder / names[-1], json.dumps(index, indent=2))
    return [folder / name for name in names]


def _write_file(path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, str]) -> None:
    # Wide types first, so that every tensor begins at a multiple of its element's size.
    tensors = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, object] = {_METADATA: {"format": "pt", **metadata}}  # for transformers
    end = 0
    for name, dtype, shape, _ in tensors:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNED)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(_LENGTH, "little") + encoded)
        for name, dtype, shape, content in tensors:
            source = content()
            if source.shape != shape:
                raise ValueError(f"{name} is {source.shape}, not {shape}")
            array = np.empty(shape, dtype)
            copy_blocks(array, source)
            file.write(array.reshape(-1).view(np.uint8).data)


def copy_blocks(target: np.ndarray, source: np.ndarray) -> None:
    """Copies an array into one of its shape, converting it to the dtype of that.

    Matrices that are transposed views are copied ten times as fast as by an assignment, which reads
    a line of memory for each element, and bfloat16 as bits.
    """
    if target.dtype == source.dtype:
        bits = np.dtype(f"u{target.dtype.itemsize}")
        target, source = target.view(bits), source.view(bits)
    if target.ndim != 2 or source.flags.c_contiguous:
        target[...] = source
        return
    rows, columns = target.shape
    for i in range(0, rows, _BLOCK):
        for j in range(0, columns, _BLOCK):
            block = slice(i, i + _BLOCK), slice(j, j + _BLOCK)
            target[block] = source[block]
