"""Uploaded files, checked before they are unpacked: whoever sends them need not mean well."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image

from modality_forcing.data.files import (
    DEPTH_SUFFIXES,
    HEIF_SUFFIXES,
    DepthFormat,
    read_depth,
    register_heif,
)
from modality_forcing.errors import UserError
from modality_forcing.exr_io import count_numbers

# Not EPS, for example, for which Pillow starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "MPO", "HEIF", "AVIF")
MAX_PIXELS = 50_000_000  # of an uploaded image: phones make up to 50 million
_MAX_CHANNELS = 4  # of an uploaded .exr of so many pixels: all are unpacked
_PNG_SCALE = 0.001  # of 16-bit PNGs; the unit has no effect on images


def check_image(path: Path) -> None:
    """Raises UserError for an image of a format or a size that is not taken, before it is decoded.

    Files that are not images pass here; reading them raises the error.
    """
    if path.suffix.lower() in HEIF_SUFFIXES:
        register_heif(path)  # or the size could not be read here
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                size, kind = opened.size, opened.format or "nameless"
    except Image.DecompressionBombError:
        _refuse_pixels(path)
    except Exception:  # `data.files` names each of the dozen kinds
        return
    if kind not in FORMATS:
        hint = f"upload one of {', '.join(FORMATS)}"
        raise UserError(f"is an image of the format {kind}", where=path, hint=hint)
    if math.prod(size) > MAX_PIXELS:
        _refuse_pixels(path, size)


def _refuse_pixels(path: Path, size: Sequence[int] = ()) -> NoReturn:
    what = f"has {' x '.join(map(str, size)) or 'too many'} pixels"
    hint = f"scale it down to {MAX_PIXELS // 10**6} million at most"
    raise UserError(what, where=path, hint=hint)


def read_map(path: Path | None) -> np.ndarray:
    """Returns an uploaded depth map as f32 [h w], 0 where unknown.

    Raises UserError if there is no file or it is no depth map.
    """
    if path is None:
        raise UserError("no depth map", hint="upload one, or choose an example")
    suffix = path.suffix.lower()
    if suffix not in DEPTH_SUFFIXES:
        what = f"depth in a {path.suffix or 'nameless'} file is not understood"
        raise UserError(what, where=path, hint="upload a .npy or .exr of floats, or a 16-bit PNG")
    if suffix == ".png":
        check_image(path)
    elif suffix == ".exr" and count_numbers(path) > _MAX_CHANNELS * MAX_PIXELS:
        _refuse_pixels(path)
    depth, valid = read_depth(path, DepthFormat(_PNG_SCALE))
    if depth.size > MAX_PIXELS:
        _refuse_pixels(path, depth.shape[::-1])
    return np.where(valid, depth, np.float32(0))
