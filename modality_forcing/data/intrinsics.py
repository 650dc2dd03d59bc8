"""Intrinsics that fit their image: rescaled to its size, or refused.

A camera is known for images of one size. A copy of another size is the same view if it has the same
aspect; any other size is a crop, whose principal point is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modality_forcing.data.resize import format_size, scale_intrinsics
from modality_forcing.errors import UserError

# Where a principal point may be, in parts of the image: that of half or twice the size is outside.
_MIDDLE = (0.3, 0.7)


def pinhole(fx: float, fy: float, cx: float, cy: float) -> np.ndarray:
    """Returns intrinsics f64 [3 3] in pixels. The center of the first pixel is at (0, 0)."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def rescale_intrinsics(
    intrinsics: np.ndarray, size: tuple[int, int], shape: Sequence[int], path: Path
) -> np.ndarray:
    """Returns [3 3] intrinsics of images of (h, w) `size` for an image of `shape` [h w ...].

    path: of the image. Raises UserError if it has another aspect, by more than rounded sides give.
    """
    height, width = size
    rows, columns = shape[:2]
    if (rows, columns) == size:
        return intrinsics
    rounding = 0.5 * (1 + width / height)
    if not rows * columns or abs(columns - rows * width / height) > rounding:
        what = f"is {format_size(shape)} pixels, not {format_size(size)} or a rescaled copy of that"
        hint = "its camera is not known: unpack the original again"
        raise UserError(what, where=path, hint=hint)
    return scale_intrinsics(intrinsics, size, (rows, columns))


def check_principal_point(
    intrinsics: np.ndarray,
    shape: Sequence[int],
    path: Path,
    camera: str = "its camera",
    hint: str = "image and camera must be of one size: unpack both again",
) -> np.ndarray:
    """Returns [3 3] intrinsics in pixels of an image of `shape` [h w ...] without a stated size.

    path: of the image. camera: whose intrinsics these are, and what to do, for the error.
    Raises UserError if the principal point is not near the middle of the image: the intrinsics are
    of images of another size. Values that are not finite pass, they are refused elsewhere.
    """
    rows, columns = shape[:2]
    x, y = (intrinsics[0, 2] + 0.5) / columns, (intrinsics[1, 2] + 0.5) / rows
    low, high = _MIDDLE
    if x < low or x > high or y < low or y > high:
        point = f"({intrinsics[0, 2]:g}, {intrinsics[1, 2]:g})"
        what = f"is {format_size(shape)} pixels, but {camera} has its principal point at {point}"
        raise UserError(what, where=path, hint=hint)
    return intrinsics
