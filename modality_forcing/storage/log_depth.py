"""Log-depth PNGs: 16-bit codes in even steps of log depth, with unknown and sky pixels.

The format of MoGe's benchmark bundles (microsoft/MoGe, moge/utils/io.py): the text chunks `near`
and `far` are the depths of codes 1 and 65534; code 0 is unknown, 65535 infinitely far. Old files
also have a chunk `unit`.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from modality_forcing.data.files import (
    MODES_16_BIT,
    exif_orientation,
    open_image,
    refuse_orientation,
)
from modality_forcing.errors import UserError
from modality_forcing.paths import write_file

_UNKNOWN, _SKY = 0, 65535
_STEPS = 65533  # between code 1, near, and code 65534, far
_MIN, _MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_HINT = "write it with modality_forcing.storage.log_depth.write_log_depth, or as MoGe does"


def read_log_depth(path: str | Path) -> tuple[np.ndarray, float | None]:
    """Returns depth f32 [h w] of a log-depth PNG, NaN where unknown, +inf in the sky; and its unit.

    The unit is the file's, in meters per unit, or None. It is not multiplied in: MoGe's loader
    overrides it for each benchmark. Raises UserError if the file is missing or damaged, has not 16
    bits, or no usable near, far and unit.
    """
    with open_image(path, "depth map") as opened:
        if opened.format != "PNG" or opened.mode not in MODES_16_BIT:
            what = f"is a {opened.format} of mode {opened.mode}, not a 16-bit gray PNG"
            raise UserError(what, where=path, hint=_HINT)
        refuse_orientation(exif_orientation(opened), path)
        codes, chunks = np.asarray(opened).astype(np.uint16), opened.info
    near, far = (_number(chunks, name, path) for name in ("near", "far"))
    if near is None or far is None:
        missing = " and ".join(name for name in ("near", "far") if name not in chunks)
        what = f"does not state the depths of its codes (no text chunk {missing})"
        raise UserError(what, where=path, hint=_HINT)
    if far < near:
        what = f"is from {near:g} to {far:g}, and far must not be below near"
        raise UserError(what, where=path, hint=_HINT)
    return decode(codes, near, far), _number(chunks, "unit", path)


def write_log_depth(path: str | Path, depth: np.ndarray) -> None:
    """Writes depth f32 [h w], NaN where unknown and +inf in the sky, as a log-depth PNG.

    near and far are the smallest and largest depth. Raises ValueError as `encode` does, UserError
    if the file cannot be written.
    """
    finite = depth[np.isfinite(depth)]
    near, far = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 1.0)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("near", repr(near))
    chunks.add_text("far", repr(far))
    content = io.BytesIO()
    Image.fromarray(encode(depth, near, far)).save(content, "PNG", pnginfo=chunks)
    write_file(path, content.getvalue())


def encode(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """Returns the codes u16 of depths that are within [near, far], NaN or +inf.

    The relative error is ln(far / near) / 131066 (half a code), beside the rounding of float32:
    0.007% for far / near of 10 000. Decoded codes encode to themselves if a code is more than that
    rounding (far / near of 1.01); if near = far, every depth has code 1. Raises ValueError if a
    depth is outside [near, far].
    """
    span = _log_span(near, far)
    finite = np.isfinite(depth)
    # Compared as float32, which is what depths are decoded to.
    outside = (depth[finite] < np.float32(near)) | (depth[finite] > np.float32(far))
    if np.any(outside) or np.any(np.isneginf(depth)):
        raise ValueError(f"depth is not all within {near:g} and {far:g}")
    log_ratio = np.log(np.where(finite, depth, near).astype(np.float64) / near)
    codes = 1 + np.clip(np.rint(log_ratio * (_STEPS / span if span > 0 else 0)), 0, _STEPS)
    return np.where(finite, codes, np.where(np.isnan(depth), _UNKNOWN, _SKY)).astype(np.uint16)


def decode(codes: np.ndarray, near: float, far: float) -> np.ndarray:
    """Returns the depths f32 of u16 codes, NaN at 0 and +inf at 65535.

    Depth is near^(1 - u) far^u with u = (code - 1) / 65533; near and far are exact.
    """
    u = (codes.astype(np.float64) - 1) / _STEPS
    depth = np.clip(near * np.exp(u * _log_span(near, far)), near, far).astype(np.float32)
    sky = np.where(codes == _SKY, np.float32(np.inf), depth)
    return np.where(codes == _UNKNOWN, np.float32(np.nan), sky)


def _log_span(near: float, far: float) -> float:
    if not _MIN <= near <= far <= _MAX:
        raise ValueError(f"log depth from {near} to {far}")
    return math.log(far) - math.log(near)


def _number(chunks: dict, name: str, path: str | Path) -> float | None:
    """Returns the positive number in a text chunk, or None without such a chunk."""
    if name not in chunks:
        return None
    text = chunks[name]
    try:
        number = float(text) if isinstance(text, str | int | float) else math.nan
    except ValueError:
        number = math.nan
    if not _MIN <= number <= _MAX:
        raise UserError(f"its {name} is {text!r}, not a positive number", where=path, hint=_HINT)
    return number
