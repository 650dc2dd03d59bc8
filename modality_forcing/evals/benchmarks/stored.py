"""The kinds of file that benchmarks store, read bit for bit: pictures, arrays, raw floats, matrices.

Unlike the readers of a user's own pictures (`data.files`), nothing is turned upright or mended: truth lies in the raster
of its picture as stored, and a file that is not what its set says is refused in one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from modality_forcing.data.files import DAMAGE, SIXTEEN_BIT, decoding
from modality_forcing.errors import UserError

_AGAIN = "unpack or download it again"


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever reading a damaged file raises into a UserError that names it; kind: "a .npy"."""
    try:
        yield
    except (OSError, *DAMAGE) as error:
        reason = getattr(error, "strerror", None) or "damaged, or another format"
        raise UserError(f"cannot be read as {kind} ({reason})", where=path, mend=_AGAIN) from error


def read_picture(path: Path) -> np.ndarray:
    """Returns a picture as u8 [h w 3] in the raster it is stored in, whatever its EXIF orientation says."""
    with decoding(path, "picture") as opened:
        if opened.mode in (*SIXTEEN_BIT, "F"):
            raise UserError("is not a picture of 8 bits", where=path, mend=_AGAIN)
        return np.array(opened.convert("RGB"))


def read_array(path: Path) -> np.ndarray:
    """Returns the numbers of a .npy of [h w] or [h w 1] as stored, [h w]."""
    with reading(path, "a .npy"), open(path, "rb") as opened:
        stored = np.lib.format.read_array(opened, allow_pickle=False)
    if stored.ndim == 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.dtype.kind not in "fiub":
        raise UserError(f"holds {stored.dtype} {stored.shape}, not a map of numbers", where=path, mend=_AGAIN)
    return stored


def read_raw_floats(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns f32 [h w] of a file that is nothing but little-endian floats, row by row; size: its (h, w)."""
    with reading(path, "raw depth"):
        stored = path.read_bytes()
    expected = 4 * size[0] * size[1]
    if len(stored) != expected:
        what = f"holds {len(stored)} bytes, not {expected}: 4 for each of {size[0]} x {size[1]} pixels of its picture"
        raise UserError(what, where=path, mend=_AGAIN)
    return np.frombuffer(stored, "<f4").astype(np.float32).reshape(size)


def read_matrix(path: Path) -> np.ndarray:
    """Returns the upper left f64 [3 3] of a matrix written as text, a row a line."""
    with reading(path, "a matrix"):
        matrix = np.array([line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()], np.float64)
    if matrix.ndim != 2 or min(matrix.shape) < 3:
        raise UserError(f"holds numbers of shape {matrix.shape}, not a camera matrix", where=path, mend=_AGAIN)
    return matrix[:3, :3]


def same_size(image: np.ndarray, depth: np.ndarray, image_path: Path, depth_path: Path) -> None:
    """Raises UserError if depth [h w] does not lie in the raster of its picture [h w 3]."""
    if image.shape[:2] != depth.shape:
        (height, width), (rows, columns) = image.shape[:2], depth.shape
        what = f"is {columns} x {rows} pixels, but its picture {image_path.name} {width} x {height}"
        raise UserError(what, where=depth_path, mend="both must come from the same download: unpack it again")
