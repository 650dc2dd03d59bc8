"""Reads a user's picture and depth files: whatever is wrong with one is told in a line that says how to hint it."""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from modality_forcing.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
DEPTH_SUFFIXES = (".png", ".npy")

SIXTEEN_BIT = (
    "I;16",
    "I;16L",
    "I;16B",
    "I;16N",
    "I",
)  # "I": how Pillow before 11.3 may open a 16-bit grey PNG
_SAVE_AGAIN = "save depth as a 16-bit single-channel PNG or as a .npy of floats"
# What Pillow's decoders are known to raise on damaged files, apart from OSError.
DAMAGE = (
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
)


def read_image(path: str | Path) -> np.ndarray:
    """Returns a picture as u8 [h w 3], upright by its EXIF orientation, transparent parts white, 16 bits reduced to 8.

    Raises UserError if the file is missing, damaged, too large to be a picture, or of a kind with no colours to show.
    """
    with decoding(path, "picture") as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in SIXTEEN_BIT:
            return _grey_from_16_bits(upright, path)
        if upright.mode == "F":
            raise UserError(
                "holds floats, not a picture", where=path, hint="save it as an 8-bit JPEG or PNG"
            )
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        return np.array(upright.convert("RGB"))


def read_depth(path: str | Path, scale: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 [h w] and valid bool [h w] of a 16-bit PNG or a .npy; depth is the stored number times `scale`.

    scale: units per stored number; must be stated for a PNG, whose counts have none of their own, and is 1 for a .npy.
    0, NaN and +inf mean unknown; there depth is 0 and valid False. A .npy may be [h w] or [h w 1].
    Raises UserError if the file is missing or damaged, not of these kinds, holds a negative value, or nothing valid.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in DEPTH_SUFFIXES:
        raise UserError(
            f"depth in a {suffix or 'nameless'} file is not understood",
            where=path,
            hint=_SAVE_AGAIN,
        )
    if scale is None and suffix == ".png":
        raise UserError(
            "the unit of its counts is not known",
            where=path,
            hint="state the depth scale, e.g. 0.001 for millimetres",
        )
    factor = check_scale(1.0 if scale is None else scale)
    stored = png_counts(path) if suffix == ".png" else _floats(path)
    if np.any(stored < 0):
        lowest = np.nanmin(stored)
        raise UserError(
            f"depth holds negative values (down to {lowest:g})",
            where=path,
            hint="mark unknown pixels by 0",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        depth = (stored * factor).astype(np.float32)
    valid = np.isfinite(depth) & (depth > 0)
    if not valid.any():
        raise UserError(
            "holds no valid depth (all is 0, NaN or inf)",
            where=path,
            hint="remove the file or hint it",
        )
    return np.where(valid, depth, np.float32(0)), valid


def check_scale(scale: float) -> float:
    """Returns a depth scale, or raises UserError if it is not a positive number."""
    number = isinstance(scale, int | float) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or scale <= 0:
        raise UserError(
            f"depth scale is {scale!r}",
            hint="it must be a positive number, e.g. 0.001 for millimetres",
        )
    return float(scale)


@contextmanager
def decoding(path: str | Path, kind: str) -> Iterator[Image.Image]:
    """Opens and decodes a picture file; whatever a decoder raises becomes one line."""
    try:
        with warnings.catch_warnings():
            # A large photograph is no mistake; Pillow still refuses from twice its limit, 179 million pixels.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                opened.load()
                yield opened
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError("no such file", where=path, hint="check the path") from error
    except Image.DecompressionBombError as error:
        raise UserError(
            f"more pixels than a {kind} should have", where=path, hint="scale it down"
        ) from error
    except (OSError, *DAMAGE) as error:
        reason = getattr(error, "strerror", None) or "not an image format known here, or damaged"
        raise UserError(
            f"cannot be read as a {kind} ({reason})", where=path, hint="replace the file"
        ) from error


def decode_jpeg(content: bytes, most_pixels: float = math.inf) -> np.ndarray:
    """Returns a JPEG as u8 [h w 3], in the raster it is stored in; raises ValueError if it is damaged, none, or larger.

    The pixels are Pillow's, which uses the same library, in two thirds of the time.
    """
    import simplejpeg

    if most_pixels < math.inf:
        height, width = (int(side) for side in simplejpeg.decode_jpeg_header(content)[:2])
        if height * width > most_pixels:
            raise ValueError(f"a picture of {width} x {height} pixels")
    return simplejpeg.decode_jpeg(content, "RGB")


def _grey_from_16_bits(image: Image.Image, path: str | Path) -> np.ndarray:
    counts = np.asarray(image).astype(np.int64)
    if counts.min() < 0 or counts.max() > 65535:
        raise UserError(
            "holds more than 16 bits, not a picture",
            where=path,
            hint="save it as an 8-bit JPEG or PNG",
        )
    grey = ((counts + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def png_counts(path: Path) -> np.ndarray:
    """Returns the counts of a 16-bit grey PNG as f64 [h w]."""
    with decoding(path, "depth map") as opened:
        if opened.mode not in SIXTEEN_BIT:
            kind = {"1": "a 1-bit", "L": "an 8-bit", "P": "a palette"}.get(
                opened.mode, f"a colour ({opened.mode})"
            )
            raise UserError(f"is {kind} picture, not 16-bit depth", where=path, hint=_SAVE_AGAIN)
        return np.asarray(opened).astype(np.float64)


def _floats(path: Path) -> np.ndarray:
    """Returns the values of a .npy as f64 [h w]."""
    try:
        with open(
            path, "rb"
        ) as opened:  # read_array, not np.load, which would take a zip or a pickle by its content
            stored = np.lib.format.read_array(opened, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError("no such file", where=path, hint="check the path") from error
    except (OSError, *DAMAGE) as error:
        raise UserError(
            "cannot be read as an array of numbers", where=path, hint=_SAVE_AGAIN
        ) from error
    if stored.dtype.kind not in "fiu":
        raise UserError(f"holds {stored.dtype}, not numbers of depth", where=path, hint=_SAVE_AGAIN)
    if stored.ndim == 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.size == 0:
        raise UserError(
            f"has shape {stored.shape}, not [h w]", where=path, hint="save one map, rows by columns"
        )
    return stored.astype(np.float64)
