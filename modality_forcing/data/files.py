"""Reads image and depth files; errors name the file and suggest a fix."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from modality_forcing.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DEPTH_SUFFIXES = (".png", ".npy")

# Pillow before 11.3 may open a 16-bit gray PNG as "I".
MODES_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")
# What Pillow's decoders raise on damaged files, apart from OSError.
DECODE_ERRORS = (
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)
_SAVE_DEPTH = "save depth as a 16-bit single-channel PNG or as a .npy of floats"
_SAVE_IMAGE = "save it as an 8-bit JPEG or PNG"
_CHECK_PATH = "check the path"


def read_image(path: str | Path | BytesIO) -> np.ndarray:
    """Returns an image as u8 [h w 3], upright by its EXIF orientation, on white, 16 bits as 8.

    Raises UserError if the file is missing, damaged, too large, or not an image.
    """
    with open_image(path, "image") as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in MODES_16_BIT:
            return _gray_from_16_bits(upright, path)
        if upright.mode == "F":
            raise UserError("holds floats, not an image", where=path, hint=_SAVE_IMAGE)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        return np.array(upright.convert("RGB"))


def read_depth(path: str | Path, scale: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 [h w] and valid bool [h w] of a 16-bit PNG or a .npy ([h w] or [h w 1]).

    Stored 0, NaN and +inf are unknown: there depth is 0 and valid False.

    scale: depth per stored number; required for a PNG, and 1 by default for a .npy.
    Raises UserError if the file is missing, damaged or of another kind, has a negative value, or
    has no valid one.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in DEPTH_SUFFIXES:
        what = f"depth in a {suffix or 'nameless'} file is not understood"
        raise UserError(what, where=path, hint=_SAVE_DEPTH)
    if scale is None and suffix == ".png":
        hint = "state the depth scale, e.g. 0.001 for millimeters"
        raise UserError("the unit of its counts is not known", where=path, hint=hint)
    factor = check_scale(1.0 if scale is None else scale)
    stored = read_png16(path) if suffix == ".png" else _read_npy(path)
    if np.any(stored < 0):
        what = f"depth holds negative values (down to {np.nanmin(stored):g})"
        raise UserError(what, where=path, hint="mark unknown pixels by 0")
    with np.errstate(over="ignore", invalid="ignore"):
        depth = (stored * factor).astype(np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        what = "holds no valid depth (all is 0, NaN or inf)"
        raise UserError(what, where=path, hint="remove the file or fix it")
    return np.where(valid, depth, np.float32(0)), valid


def check_scale(scale: object) -> float:
    """Returns a depth scale; raises UserError if it is not a positive number."""
    if isinstance(scale, int | float) and not isinstance(scale, bool):  # noqa: SIM102
        if math.isfinite(scale) and scale > 0:
            return float(scale)
    hint = "it must be a positive number, e.g. 0.001 for millimeters"
    raise UserError(f"depth scale is {scale!r}", hint=hint)


@contextmanager
def open_image(path: str | Path | BytesIO, kind: str) -> Iterator[Image.Image]:
    """Opens and decodes an image file; decoder errors name its kind ("depth map")."""
    try:
        with warnings.catch_warnings():
            # A large photograph is fine. Pillow refuses above twice its limit, 179 million pixels.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()
                yield opened
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("no such file", where=path, hint=_CHECK_PATH) from error
    except Image.DecompressionBombError as error:
        what = f"more pixels than a {kind} should have"
        raise UserError(what, where=path, hint="scale it down") from error
    except (OSError, *DECODE_ERRORS) as error:
        reason = getattr(error, "strerror", None) or "not an image format known here, or damaged"
        article = "an" if kind[0] in "aeiou" else "a"
        what = f"cannot be read as {article} {kind} ({reason})"
        raise UserError(what, where=path, hint="replace the file") from error


def decode_jpeg(content: bytes, max_pixels: float = math.inf) -> np.ndarray:
    """Returns a JPEG as u8 [h w 3], not rotated; raises ValueError if it is damaged or larger.

    The pixels equal Pillow's, which uses the same library, in two thirds of the time.
    """
    import simplejpeg

    if max_pixels < math.inf:
        height, width = (int(side) for side in simplejpeg.decode_jpeg_header(content)[:2])
        if height * width > max_pixels:
            raise ValueError(f"an image of {width} x {height} pixels")
    return simplejpeg.decode_jpeg(content, "RGB")


def read_png16(path: Path) -> np.ndarray:
    """Returns the counts of a 16-bit gray PNG as f64 [h w]."""
    with open_image(path, "depth map") as opened:
        if opened.mode not in MODES_16_BIT:
            kinds = {"1": "a 1-bit", "L": "an 8-bit", "P": "a palette"}
            kind = kinds.get(opened.mode, f"a color ({opened.mode})")
            raise UserError(f"is {kind} image, not 16-bit depth", where=path, hint=_SAVE_DEPTH)
        return np.asarray(opened).astype(np.float64)


def _gray_from_16_bits(image: Image.Image, path: str | Path | BytesIO) -> np.ndarray:
    counts = np.asarray(image).astype(np.int64)
    if counts.min() < 0 or counts.max() > 65535:
        raise UserError("holds more than 16 bits, not an image", where=path, hint=_SAVE_IMAGE)
    gray = ((counts + 128) // 257).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def _read_npy(path: Path) -> np.ndarray:
    """Returns the values of a .npy as f64 [h w]."""
    try:
        with open(path, "rb") as opened:  # not np.load, which also accepts a zip or a pickle
            stored = np.lib.format.read_array(opened, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError("no such file", where=path, hint=_CHECK_PATH) from error
    except (OSError, *DECODE_ERRORS) as error:
        what = "cannot be read as an array of numbers"
        raise UserError(what, where=path, hint=_SAVE_DEPTH) from error
    if stored.dtype.kind not in "fiu":
        what = f"holds {stored.dtype}, not numbers of depth"
        raise UserError(what, where=path, hint=_SAVE_DEPTH)
    if stored.ndim == 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.size == 0:
        hint = "save one map, rows by columns"
        raise UserError(f"has shape {stored.shape}, not [h w]", where=path, hint=hint)
    return stored.astype(np.float64)
