"""Depth in 16-bit PNGs whose codes are even steps of its logarithm, with unknown and sky pixels told apart.

The format of MoGe's benchmark bundles (microsoft/MoGe, moge/utils/io.py): the text chunks `near` and `far` say which
depths the codes 1 and 65534 stand for, code 0 is unknown and 65535 infinitely far. Old files also have a chunk `unit`.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from modality_forcing.atomic_io import write_file
from modality_forcing.data.files import MODES_16_BIT, open_image
from modality_forcing.errors import UserError

_UNKNOWN, _SKY = 0, 65535
_STEPS = 65533  # between code 1, near, and code 65534, far
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_AGAIN = "write it with modality_forcing.storage.log_depth.write_log_depth, or as MoGe does"


def read_log_depth(path: str | Path) -> tuple[np.ndarray, float | None]:
    """Returns depth f32 [h w] of a log-depth PNG, NaN where unknown and +inf in the sky, and its unit or None.

    The unit is what the file says one is worth, in metres; it is not multiplied in: MoGe's loader overrides it for each
    benchmark. Raises UserError if the file is missing or damaged, has not 16 bits, or no usable near, far and unit.
    """
    with open_image(path, "depth map") as opened:
        if opened.format != "PNG" or opened.mode not in MODES_16_BIT:
            raise UserError(
                f"is a {opened.format} of mode {opened.mode}, not a 16-bit grey PNG",
                where=path,
                hint=_AGAIN,
            )
        codes, told = np.asarray(opened).astype(np.uint16), dict(opened.info)
    near, far = (_number(told, name, path) for name in ("near", "far"))
    if near is None or far is None:
        missing = " and ".join(
            name for name, value in (("near", near), ("far", far)) if value is None
        )
        raise UserError(
            f"does not say which depths its codes stand for (no text chunk {missing})",
            where=path,
            hint=_AGAIN,
        )
    if far < near:
        raise UserError(
            f"is from {near:g} to {far:g}, and far must not be below near", where=path, hint=_AGAIN
        )
    return decode(codes, near, far), _number(told, "unit", path)


def write_log_depth(path: str | Path, depth: np.ndarray) -> None:
    """Writes depth f32 [h w], NaN where unknown and +inf in the sky, as a log-depth PNG from its nearest to its farthest.

    What is read back is off by the relative error of `encode`. Raises ValueError as `encode` does, UserError if the file
    cannot be written.
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
    """Returns the codes u16 of depths within [near, far], NaN or +inf.

    Half a code is a relative error of ln(far / near) / 131066, beside the rounding of float32: 0.007% for far / near of
    10 000. Decoded codes are encoded to themselves while a code is more than that rounding (far / near of 1.01); where
    near and far are equal, every depth has code 1. Raises ValueError if a depth lies outside [near, far].
    """
    span = _span(near, far)
    finite = np.isfinite(depth)
    outside = (depth[finite] < np.float32(near)) | (
        depth[finite] > np.float32(far)
    )  # as float32: so they are decoded
    if np.any(outside) or np.any(np.isneginf(depth)):
        raise ValueError(f"depth is not all within {near:g} and {far:g}")
    steps = np.log(np.where(finite, depth, near).astype(np.float64) / near) * (
        _STEPS / span if span > 0 else 0
    )
    codes = 1 + np.clip(np.rint(steps), 0, _STEPS)
    return np.where(finite, codes, np.where(np.isnan(depth), _UNKNOWN, _SKY)).astype(np.uint16)


def decode(codes: np.ndarray, near: float, far: float) -> np.ndarray:
    """Returns the depths f32 that u16 codes stand for: near^(1 - u) far^u at u = (code - 1) / 65533, NaN at 0, +inf at 65535."""
    part = (codes.astype(np.float64) - 1) / _STEPS
    depth = np.clip(near * np.exp(part * _span(near, far)), near, far).astype(
        np.float32
    )  # near and far themselves to the bit
    return np.where(
        codes == _UNKNOWN, np.float32(np.nan), np.where(codes == _SKY, np.float32(np.inf), depth)
    )


def _span(near: float, far: float) -> float:
    if not _LEAST <= near <= far <= _MOST:
        raise ValueError(f"log depth from {near} to {far}")
    return math.log(far) - math.log(near)


def _number(told: dict, name: str, path: str | Path) -> float | None:
    """The positive number in a text chunk, or None where the file has no such chunk."""
    if name not in told:
        return None
    try:
        number = float(told[name])
    except (TypeError, ValueError):
        number = math.nan
    if not _LEAST <= number <= _MOST:
        raise UserError(
            f"its {name} is {told[name]!r}, not a positive number", where=path, hint=_AGAIN
        )
    return number
