"""Safetensors files, written tensor by tensor: no more than one of them is in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from modality_forcing import paths
from modality_forcing.mirror import staged

_NAMES = {
    np.dtype(np.float32): "F32",
    np.dtype(np.float16): "F16",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.int8): "I8",
}
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


def write(
    folder: Path, stem: str, tensors: Sequence[Tensor], max_bytes: int | None = None
) -> list[Path]:
    """Writes `stem.safetensors` into a folder (made if new), or several such files and their index.

    The index is `stem.safetensors.index.json`, as the hub's libraries read it. A file has at most
    max_bytes of tensors, or one tensor. Returns the files, the index last.

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
            _write_file(local / name, part)
    if len(parts) == 1:
        return [folder / names[0]]
    total = sum(tensor.nbytes for tensor in tensors)
    files = {t.name: name for name, part in zip(names, parts, strict=True) for t in part}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    names.append(f"{stem}.safetensors.index.json")
    paths.write_file(folder / names[-1], json.dumps(index, indent=2))
    return [folder / name for name in names]


def _write_file(path: Path, tensors: Sequence[Tensor]) -> None:
    # Wide types first, so that every tensor begins at a multiple of its element's size.
    tensors = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, dtype, shape, _ in tensors:
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNED)
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
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
