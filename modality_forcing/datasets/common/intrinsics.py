"""Intrinsics that fit their image: rescaled to its size, or refused.

A camera is known for images of one size. A copy of another size is the same view if it has the same
aspect; any other size is a crop, whose principal point is unknown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modality_forcing.data.resize import scale_intrinsics
from modality_forcing.datasets.common.formats import format_size
from modality_forcing.errors import UserError

CameraOption = tuple[float, float, float, float]  # fx, fy, cx, cy
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
    intrinsics: np.ndarray, shape: Sequence[int], path: Path, camera: object = "its camera"
) -> np.ndarray:
    """Returns [3 3] intrinsics in pixels of an image of `shape` [h w ...] without a stated size.

    path: of the image. camera: the file of the intrinsics, for the error.
    Raises UserError if the principal point is not near the middle of the image: the intrinsics are
    of images of another size. Values that are not finite pass, they are refused elsewhere.
    """
    rows, columns = shape[:2]
    x, y = (intrinsics[0, 2] + 0.5) / columns, (intrinsics[1, 2] + 0.5) / rows
    low, high = _MIDDLE
    if x < low or x > high or y < low or y > high:
        point = f"({intrinsics[0, 2]:g}, {intrinsics[1, 2]:g})"
        what = f"is {format_size(shape)} pixels, but {camera} has its principal point at {point}"
        hint = "image and camera must be of one size: unpack both again"
        raise UserError(what, where=path, hint=hint)
    return intrinsics


def parse_camera(text: str) -> CameraOption:
    """Returns the numbers of `--option camera=FX,FY,CX,CY`. Raises UserError for other text."""
    try:
        fx, fy, cx, cy = (float(number) for number in text.split(","))
        if not (min(fx, fy) > 0 and all(map(math.isfinite, (fx, fy, cx, cy)))):
            raise ValueError("not a camera")
    except ValueError as error:
        hint = "write FX,FY,CX,CY in pixels of the images, e.g. 525,525,319.5,239.5"
        raise UserError(f"camera is {text!r}", hint=hint) from error
    return fx, fy, cx, cy


def vga_intrinsics(
    known: np.ndarray | None,
    option: CameraOption | None,
    shape: Sequence[int],
    path: Path,
    *,
    hint: str,
) -> np.ndarray:
    """Returns [3 3] intrinsics of an image of `shape` [h w ...] from a camera of 640 x 480 pixels.

    known: of images of that size, None if the data set does not say. option: of this size, stated
    by the user. path: of the image. hint: how to recognize the camera, for the error.
    Raises UserError if neither is there, or for another size.
    """
    if option:
        return check_principal_point(pinhole(*option), shape, path, "the camera option")
    if known is None:
        state = "or state it: --option camera=FX,FY,CX,CY in pixels of the images"
        raise UserError("its camera is not known", where=path, hint=f"{hint}, {state}")
    return rescale_intrinsics(known, (480, 640), shape, path)
