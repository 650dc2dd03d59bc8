"""The kinds of file that data sets store, decoded bit for bit: counts, packed floats, PFM, HDF5, arrays, pictures, matrices.

Unlike the readers of a user's own pictures (`data.files`), nothing is turned upright or mended: truth lies in the raster
of its picture as stored, and a file that is not what its set says is refused in one line. Every reader raises UserError,
naming the file, for one that is missing, damaged or of another kind. What values mean unknown is told by each.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from modality_forcing.data.files import (
    DECODE_ERRORS,
    MODES_16_BIT,
    decode_jpeg,
    open_image,
    read_png16,
)
from modality_forcing.errors import UserError

_AGAIN = "unpack or download it again"
# A PFM's width, height and scale; some writers leave blanks at the ends of lines. One line break ends the header.
_PFM = re.compile(
    rb"Pf[ \t]*\r?\n\s*(\d{1,6})\s+(\d{1,6})\s+([-+]?[0-9.]+(?:[eE][-+]?\d+)?)[ \t]*\r?\n"
)


@contextmanager
def wrap_read_errors(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever reading a damaged file raises into a UserError that names it; kind: "a .npy"."""
    try:
        yield
    except (OSError, RuntimeError, zipfile.BadZipFile, *DECODE_ERRORS) as error:
        code = getattr(error, "errno", None)
        reason = (
            os.strerror(code) if code else "damaged, or another format"
        )  # not strerror: HDF5's is a paragraph
        raise UserError(f"cannot be read as {kind} ({reason})", where=path, hint=_AGAIN) from error


def read_rgb(path: Path) -> np.ndarray:
    """Returns a picture as u8 [h w 3] in the raster it is stored in, whatever its EXIF orientation says."""
    with suppress(OSError, ValueError):  # of what is wrong Pillow tells more
        if path.suffix.lower() in (".jpg", ".jpeg"):
            return decode_jpeg(
                path.read_bytes(), 2 * (Image.MAX_IMAGE_PIXELS or math.inf)
            )  # as many as Pillow takes
    with open_image(path, "picture") as opened:
        if opened.mode in (*MODES_16_BIT, "F"):
            raise UserError("is not a picture of 8 bits", where=path, hint=_AGAIN)
        return np.array(opened.convert("RGB"))


def read_uint8(path: Path) -> np.ndarray:
    """Returns the numbers u8 [h w] of an 8-bit grey or palette PNG: masks and confidences, a palette's as its places."""
    with open_image(path, "mask") as opened:
        if opened.mode not in ("L", "P"):
            raise UserError(
                f"is a picture of mode {opened.mode}, not a mask of 8 bits", where=path, hint=_AGAIN
            )
        return np.array(opened)


def read_uint16_depth(path: Path, per_unit: float, unknown: tuple[int, ...] = (0,)) -> np.ndarray:
    """Returns depth f32 [h w] of a 16-bit grey PNG, count / per_unit, 0 where the count is one of `unknown`.

    per_unit: 1000 for millimetres, 256 for KITTI, 512 for Taskonomy, 5000 for TUM.
    """
    counts = read_png16(path)
    return np.where(np.isin(counts, unknown), 0, counts / per_unit).astype(np.float32)


def read_sunrgbd_depth(path: Path) -> np.ndarray:
    """Returns depth f32 [h w] in metres of SUN RGB-D's 16-bit PNG, whose millimetres are turned left by 3 bits; 0 is unknown.

    Left as they are, the counts look like depth too. Source: read3dPoints.m of the SUN RGB-D toolbox.
    """
    counts = read_png16(path).astype(np.uint16)
    return ((counts >> 3 | counts << 13) / 1000).astype(np.float32)


def read_packed_floats(path: Path) -> np.ndarray:
    """Returns the f32 [h w] whose four bytes, least first, are the B, G, R and A of a PNG of 8-bit colour and alpha.

    TartanAir v2 writes and reads these with OpenCV, to which the first channel is blue. All values are passed on.
    """
    with open_image(path, "depth map") as opened:
        if opened.mode != "RGBA":
            raise UserError(
                f"is a picture of mode {opened.mode}, not floats in RGBA", where=path, hint=_AGAIN
            )
        stored = np.asarray(opened)
    return np.ascontiguousarray(stored[..., [2, 1, 0, 3]]).view("<f4")[..., 0].astype(np.float32)


def read_base_255(path: Path) -> np.ndarray:
    """Returns the disparity f32 [h w] in pixels of FoundationStereo's RGB PNG: (255² R + 255 G + B) / 1000; 0 is unknown.

    The base is 255 and not 256: scripts/vis_dataset.py and Utils.py of NVlabs/FoundationStereo.
    """
    with open_image(path, "disparity map") as opened:
        if opened.mode != "RGB":
            raise UserError(
                f"is a picture of mode {opened.mode}, not disparity in RGB", where=path, hint=_AGAIN
            )
        digits = np.asarray(opened).astype(np.float64)
    return (digits @ [255 * 255, 255, 1] / 1000).astype(np.float32)


def read_pfm(path: Path) -> np.ndarray:
    """Returns f32 [h w] of a grey PFM: rows from the bottom up, little-endian if its scale is negative; all values as stored."""
    with wrap_read_errors(path, "a PFM"):
        stored = path.read_bytes()
    header = _PFM.match(stored)
    if not header:
        raise UserError("is not a PFM of one channel", where=path, hint=_AGAIN)
    width, height = int(header[1]), int(header[2])
    kind = "<f4" if header[3].startswith(b"-") else ">f4"
    return np.flipud(_samples(stored[header.end() :], kind, (height, width), path)).astype(
        np.float32
    )


def read_hdf5(path: Path, key: str) -> np.ndarray:
    """Returns the numbers of one data set of an HDF5 file, in the shape and type stored; needs h5py."""
    import h5py

    with wrap_read_errors(path, "HDF5"), h5py.File(path, "r") as opened:
        found = opened.get(key)
        if isinstance(found, h5py.Dataset):
            return _numbers(np.asarray(found[()]), path)
    raise UserError(f"holds no data set {key!r}", where=path, hint=_AGAIN)


def read_npz(path: Path, key: str) -> np.ndarray:
    """Returns the numbers of one array of a .npz, in the shape and type stored."""
    found = None
    with wrap_read_errors(path, "a .npz"):
        opened = np.load(path)  # an array, where the file is a .npy
        if isinstance(opened, np.lib.npyio.NpzFile):
            with opened:
                found = opened[key] if key in opened.files else None
    if found is None:
        raise UserError(f"holds no array {key!r}", where=path, hint=_AGAIN)
    return _numbers(found, path)


def read_array(path: Path) -> np.ndarray:
    """Returns the numbers of a .npy of [h w] or [h w 1] as stored, [h w]."""
    with wrap_read_errors(path, "a .npy"), open(path, "rb") as opened:
        stored = np.lib.format.read_array(opened, allow_pickle=False)
    if stored.ndim == 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.dtype.kind not in "fiub":
        raise UserError(
            f"holds {stored.dtype} {stored.shape}, not a map of numbers", where=path, hint=_AGAIN
        )
    return stored


def read_raw_floats(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns f32 [h w] of a file that is nothing but little-endian floats, row by row; size: its (h, w)."""
    with wrap_read_errors(path, "raw depth"):
        stored = path.read_bytes()
    expected = 4 * size[0] * size[1]
    if len(stored) != expected:
        what = f"holds {len(stored)} bytes, not {expected}: 4 for each of {size[0]} x {size[1]} pixels of its picture"
        raise UserError(what, where=path, hint=_AGAIN)
    return np.frombuffer(stored, "<f4").astype(np.float32).reshape(size)


def read_matrix(path: Path) -> np.ndarray:
    """Returns the upper left f64 [3 3] of a matrix written as text, a row a line."""
    return _matrix(path, 3)[:3, :3]


def read_pose(path: Path) -> np.ndarray:
    """Returns f64 [4 4] written as text, a row a line; raises UserError if a number is not finite, as where tracking was lost."""
    pose = _matrix(path, 4)[:4, :4]
    if not np.isfinite(pose).all():
        raise UserError(
            "the pose is not finite: tracking was lost", where=path, hint="leave the frame out"
        )
    return pose


def read_text(path: Path, kind: str = "text") -> str:
    """Returns a UTF-8 text file whole."""
    with wrap_read_errors(path, kind):
        return path.read_text(encoding="utf-8-sig")


def check_same_size(
    image: np.ndarray, depth: np.ndarray, image_path: Path, depth_path: Path
) -> None:
    """Raises UserError if depth [h w] does not lie in the raster of its picture [h w 3]."""
    if image.shape[:2] != depth.shape:
        (height, width), (rows, columns) = image.shape[:2], depth.shape
        what = f"is {columns} x {rows} pixels, but its picture {image_path.name} {width} x {height}"
        raise UserError(
            what, where=depth_path, hint="both must come from the same download: unpack it again"
        )


def _matrix(path: Path, least: int) -> np.ndarray:
    with wrap_read_errors(path, "a matrix"):
        matrix = np.array(
            [
                line.split()
                for line in path.read_text(encoding="utf-8").splitlines()
                if line.strip()
            ],
            np.float64,
        )
    if matrix.ndim != 2 or min(matrix.shape) < least:
        raise UserError(
            f"holds numbers of shape {matrix.shape}, not a camera matrix", where=path, hint=_AGAIN
        )
    return matrix


def _numbers(stored: np.ndarray, path: Path) -> np.ndarray:
    if stored.dtype.kind not in "fiub":
        raise UserError(f"holds {stored.dtype}, not numbers", where=path, hint=_AGAIN)
    return stored


def _samples(stored: bytes, kind: str, size: tuple[int, int], path: Path) -> np.ndarray:
    """Returns the first h w samples of the bytes after a header, [h w]."""
    expected = np.dtype(kind).itemsize * size[0] * size[1]
    if not 0 < expected <= len(stored):
        raise UserError(
            f"holds {len(stored)} bytes after its header, not {expected}", where=path, hint=_AGAIN
        )
    return np.frombuffer(stored[:expected], kind).reshape(size)
