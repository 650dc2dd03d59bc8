"""The camera of a recording that its data set does not state: `--option camera=FX,FY,CX,CY`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from modality_forcing.data.intrinsics import check_principal_point, pinhole, rescale_intrinsics
from modality_forcing.errors import UserError

CameraOption = tuple[float, float, float, float]  # fx, fy, cx, cy


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
