"""Log-depth PNGs: 16-bit codes in even steps of log depth, with unknown and sky pixels.

The format of MoGe's benchmark bundles (microsoft/MoGe, moge/utils/io.py): the text chunks `near`
and `far` are the depths of codes 1 and 65534; code 0 is unknown, 65535 infinitely far. Old files
also have a chunk `unit`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from modality_forcing.data.files import (
    MODES_16_BIT,
    exif_orientation,
    open_image,
    refuse_orientation,
)
from modality_forcing.errors import UserError

_UNKNOWN, _SKY = 0, 65535
_STEPS = 65533  # between code 1, near, and code 65534, far
_MIN, _MAX = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_HINT = "write it as MoGe does, or unpack it again"


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
