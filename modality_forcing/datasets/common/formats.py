"""Decodes the file formats of data sets, bit for bit.

Unlike the readers of a user's own images (`data.files`), nothing is rotated upright or repaired:
cameras and depth are for the stored raster. An EXIF orientation says that a file was changed, and
is refused; only photographs come with one. Every reader raises UserError with the name of a
file that is missing, damaged or of another format.
"""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from modality_forcing import numpy_io, paths, text_io
from modality_forcing.data.files import (
    DECODE_ERRORS,
    MODES_16_BIT,
    decode_jpeg,
    exif_orientation,
    jpeg_orientation,
    open_image,
    orient,
    read_png16,
    refuse_orientation,
)
from modality_forcing.data.resize import format_size
from modality_forcing.errors import UserError

UNPACK_AGAIN = "unpack or download it again"
# Width, height and scale of a PFM. Some writers pad lines with blanks. One line break ends it.
_PFM = re.compile(
    rb"Pf[ \t]*\r?\n\s*(\d{1,6})\s+(\d{1,6})\s+([-+]?[0-9.]+(?:[eE][-+]?\d+)?)[ \t]*\r?\n"
)


@contextmanager
def wrap_read_errors(path: Path, kind: str) -> Iterator[None]:
    """Turns any error of reading a damaged file into a UserError. kind: e.g. "a .npy"."""
    try:
        yield
    except (OSError, RuntimeError, zipfile.BadZipFile, *DECODE_ERRORS) as error:
        # Not strerror, which is a paragraph in HDF5.
        code = getattr(error, "errno", None)
        reason = os.strerror(code) if code else "damaged, or another format"
        what = f"cannot be read as {kind} ({reason})"
        raise UserError(what, where=path, hint=UNPACK_AGAIN) from error


@contextmanager
def wrap_parse_errors(path: Path, what: str, hint: str = UNPACK_AGAIN) -> Iterator[None]:
    """Turns any error of interpreting the content of a file into a UserError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(what, where=path, hint=hint) from error


def read_rgb(path: Path) -> np.ndarray:
    """Returns an image as u8 [h w 3] in its stored raster; raises as `refuse_orientation`."""
    image, orientation = _read_image(path)
    refuse_orientation(orientation, path)
    return image


def read_photograph(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Returns an image as u8 [h w 3] in the raster of its camera, whatever its EXIF orientation.

    That is the stored raster: structure from motion ignores the orientation, which cameras write
    into photographs. size: (h, w) of the camera or the depth; the image is returned upright where
    only that has this size.
    """
    image, orientation = _read_image(path)
    if size not in (None, image.shape[:2]):
        upright = orient(image, orientation)
        return upright if upright.shape[:2] == size else image
    return image


def _read_image(path: Path) -> tuple[np.ndarray, int]:
    """Returns an image as u8 [h w 3] in its stored raster, and its EXIF orientation."""
    with suppress(OSError, ValueError):  # Pillow reports errors better
        if path.suffix.lower() in (".jpg", ".jpeg"):
            content = path.read_bytes()
            # The limit is Pillow's.
            pixels = decode_jpeg(content, 2 * (Image.MAX_IMAGE_PIXELS or math.inf))
            return pixels, jpeg_orientation(content)
    with open_image(path, "image") as opened:
        if opened.mode in (*MODES_16_BIT, "F"):
            raise UserError("is not an image of 8 bits", where=path, hint=UNPACK_AGAIN)
        return np.array(opened.convert("RGB")), exif_orientation(opened)


def _decode(path: Path, kind: str, modes: tuple[str, ...], expected: str) -> np.ndarray:
    with open_image(path, kind) as opened:
        if opened.mode not in modes:
            what = f"is an image of mode {opened.mode}, not {expected}"
            raise UserError(what, where=path, hint=UNPACK_AGAIN)
        refuse_orientation(exif_orientation(opened), path)
        return np.array(opened)


def read_uint8(path: Path) -> np.ndarray:
    """Returns the values u8 [h w] of an 8-bit gray or palette PNG, of a palette the indices."""
    return _decode(path, "mask", ("L", "P"), "a mask of 8 bits")


def read_uint16_depth(path: Path, per_unit: float, invalid: tuple[int, ...] = (0,)) -> np.ndarray:
    """Returns depth f32 [h w] of a 16-bit gray PNG: count / per_unit, 0 for `invalid` counts.

    per_unit: 1000 for millimeters, 256 for KITTI, 512 for Taskonomy, 5000 for TUM.
    """
    counts = read_png16(path)
    return np.where(np.isin(counts, invalid), 0, counts / per_unit).astype(np.float32)


def read_sunrgbd_depth(path: Path) -> np.ndarray:
    """Returns depth f32 [h w] in meters of a 16-bit PNG of SUN RGB-D, 0 where invalid.

    The counts are millimeters rotated left by 3 bits; undecoded, they look like depth too.
    Source: read3dPoints.m of the SUN RGB-D toolbox.
    """
    counts = read_png16(path).astype(np.uint16)
    return ((counts >> 3 | counts << 13) / 1000).astype(np.float32)


def read_packed_floats(path: Path) -> np.ndarray:
    """Returns f32 [h w] of an RGBA PNG whose B, G, R, A are the bytes of a little-endian float.

    TartanAir v2 reads and writes these with OpenCV, whose first channel is blue. All values are
    returned as stored.
    """
    stored = _decode(path, "depth map", ("RGBA",), "floats in RGBA")
    return np.ascontiguousarray(stored[..., [2, 1, 0, 3]]).view("<f4")[..., 0].astype(np.float32)


def read_base_255(path: Path) -> np.ndarray:
    """Returns disparity f32 [h w] in pixels of FoundationStereo's RGB PNG, 0 where invalid.

    It is (255² R + 255 G + B) / 1000. The base is 255 and not 256: scripts/vis_dataset.py and
    Utils.py of NVlabs/FoundationStereo.
    """
    digits = _decode(path, "disparity map", ("RGB",), "disparity in RGB").astype(np.float64)
    return (digits @ [255 * 255, 255, 1] / 1000).astype(np.float32)


def read_pfm(path: Path) -> np.ndarray:
    """Returns f32 [h w] of a gray PFM: rows from the bottom up, little-endian for scale < 0."""
    with wrap_read_errors(path, "a PFM"):
        stored = path.read_bytes()
    header = _PFM.match(stored)
    if not header:
        raise UserError("is not a PFM of one channel", where=path, hint=UNPACK_AGAIN)
    width, height = int(header[1]), int(header[2])
    samples, expected = stored[header.end() :], 4 * width * height
    if not 0 < expected <= len(samples):
        what = f"holds {len(samples)} bytes after its header, not {expected}"
        raise UserError(what, where=path, hint=UNPACK_AGAIN)
    dtype = "<f4" if header[3].startswith(b"-") else ">f4"
    rows = np.frombuffer(samples[:expected], dtype).reshape(height, width)
    return np.flipud(rows).astype(np.float32)


def read_hdf5(path: Path, key: str) -> np.ndarray:
    """Returns one numeric data set of an HDF5 file, as stored. Needs h5py."""
    import h5py

    with wrap_read_errors(path, "HDF5"), h5py.File(path, "r") as opened:
        found = opened.get(key)
        if isinstance(found, h5py.Dataset):
            return _check_numeric(np.asarray(found[()]), path)
    raise UserError(f"holds no data set {key!r}", where=path, hint=UNPACK_AGAIN)


def read_npz(path: Path, key: str) -> np.ndarray:
    """Returns one numeric array of a .npz, as stored."""
    return numpy_io.read_npz(path, (key,), UNPACK_AGAIN)[key]


def read_array(path: Path) -> np.ndarray:
    """Returns the numbers [h w] of a .npy of [h w] or [h w 1], as stored."""
    return as_map(numpy_io.read_npy(path, UNPACK_AGAIN), path)


def as_map(stored: np.ndarray, path: Path) -> np.ndarray:
    """Returns the numbers [h w] of an array [h w] or [h w 1]; raises UserError for others."""
    if stored.ndim == 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.dtype.kind not in "fiub":
        what = f"holds {stored.dtype} {stored.shape}, not a map of numbers"
        raise UserError(what, where=path, hint=UNPACK_AGAIN)
    return stored


def read_raw_floats(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns f32 [h w] of a file of little-endian floats without a header. size: its (h, w)."""
    with wrap_read_errors(path, "raw depth"):
        stored = path.read_bytes()
    expected = 4 * size[0] * size[1]
    if len(stored) != expected:
        pixels = f"4 for each of {size[0]} x {size[1]} pixels of its image"
        what = f"holds {len(stored)} bytes, not {expected}: {pixels}"
        raise UserError(what, where=path, hint=UNPACK_AGAIN)
    return np.frombuffer(stored, "<f4").astype(np.float32).reshape(size)


def read_matrix(path: Path, size: int = 3) -> np.ndarray:
    """Returns the upper left f64 [size size] of a matrix written as text, one row per line."""
    lines = read_lines(path)
    with wrap_read_errors(path, "a matrix"):
        matrix = np.array([line.split() for line in lines if line.strip()], np.float64)
    if matrix.ndim != 2 or min(matrix.shape) < size:
        what = f"holds numbers of shape {matrix.shape}, not a camera matrix"
        raise UserError(what, where=path, hint=UNPACK_AGAIN)
    return matrix[:size, :size]


def read_pose(path: Path) -> np.ndarray:
    """Returns f64 [4 4] written as text. Raises UserError if tracking was lost (not finite)."""
    pose = read_matrix(path, 4)
    if not np.isfinite(pose).all():
        what = "the pose is not finite: tracking was lost"
        raise UserError(what, where=path, hint="leave the frame out")
    return pose


def read_span(path: Path, offset: int, size: int) -> bytes:
    """Returns some bytes of a file that was listed before; raises UserError if it lacks them."""
    try:
        with open(path, "rb") as opened:
            opened.seek(offset)
            content = opened.read(size)
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise UserError(what, where=path, hint="check the path") from error
    if len(content) != size:
        raise UserError("is shorter than when it was listed", where=path, hint="download it again")
    return content


def read_text(path: Path) -> str:
    """Returns the content of a UTF-8 text file."""
    return paths.read_text(path, UNPACK_AGAIN)


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a UTF-8 text file."""
    return text_io.split_lines(read_text(path))


def read_json(path: Path) -> Any:
    """Returns the content of a JSON file."""
    return text_io.read_json(path, hint=UNPACK_AGAIN, finite=False)


def check_same_size(
    image: np.ndarray, depth: np.ndarray, image_path: Path, depth_path: Path
) -> None:
    """Raises UserError unless depth [h w] has the size of its image [h w 3]."""
    if image.shape[:2] != depth.shape:
        size, other = format_size(depth.shape), format_size(image.shape)
        what = f"is {size} pixels, but its image {image_path.name} {other}"
        hint = "both must come from the same download: unpack it again"
        raise UserError(what, where=depth_path, hint=hint)


def check_camera_size(
    shape: tuple[int, ...],
    size: tuple[int, int],
    path: Path,
    hint: str = "unpack the original again",
) -> None:
    """Raises UserError unless the shape [h w ...] of a raster is the size of its camera."""
    if shape[:2] != size:
        what = f"is {format_size(shape)} pixels, but its camera {format_size(size)}"
        raise UserError(what, where=path, hint=hint)


def _check_numeric(stored: np.ndarray, path: Path) -> np.ndarray:
    if stored.dtype.kind not in "fiub":
        raise UserError(f"holds {stored.dtype}, not numbers", where=path, hint=UNPACK_AGAIN)
    return stored
