"""What callers of the pipeline pass: paths, PIL images and arrays, one or a list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from modality_forcing.data.files import DepthFormat, read_depth, read_image, upright_rgb
from modality_forcing.errors import UserError
from modality_forcing.paths import as_path

ImageLike = Image.Image | np.ndarray | str | Path
DepthLike = np.ndarray | str | Path
T = TypeVar("T")


def as_image(image: ImageLike) -> np.ndarray:
    """Returns an image as u8 [h w 3]; raises UserError if it is none."""
    if isinstance(image, Image.Image):
        return upright_rgb(image, "the image")
    if not isinstance(image, np.ndarray):
        return read_image(as_path(image))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        what = f"an image is u8 [h w 3], not {image.dtype} {list(image.shape)}"
        raise UserError(what, hint="scale colors to 0 to 255 and convert them to np.uint8")
    return image


def as_depth(depth: DepthLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 and valid bool [h w]; raises UserError if it is none.

    0, NaN and inf are not valid. A 16-bit PNG is in counts: the unit has no effect on images.
    """
    if not isinstance(depth, np.ndarray):
        return read_depth(as_path(depth), DepthFormat(scale=1.0))
    if depth.ndim != 2 or depth.dtype.kind not in "fiu" or not depth.size:
        what = f"depth is f32 [h w], not {depth.dtype} {list(depth.shape)}"
        raise UserError(what, hint="give one number per pixel")
    values = depth.astype(np.float32)
    if (values < 0).any():
        raise UserError("depth holds negative values", hint="mark unknown pixels by 0")
    valid = np.isfinite(values) & (values > 0)
    if not valid.any():
        raise UserError("depth is nowhere valid", hint="give a pixel above 0")
    return np.where(valid, values, np.float32(0)), valid


def as_list(inputs: T | Sequence[T] | np.ndarray) -> tuple[list, bool]:
    """Returns inputs as a list and whether they were one; an array [n h w ...] is one."""
    if isinstance(inputs, np.ndarray):
        return ([*inputs], True) if inputs.ndim == 4 else ([inputs], False)
    if isinstance(inputs, str | Path | Image.Image):
        return [inputs], False
    if isinstance(inputs, Sequence):
        return [*inputs], True
    what = f"{type(inputs).__name__} is no input"
    raise UserError(what, hint="give a path, a PIL image, an array, or a list of them")


def as_captions(captions: Sequence[str] | str | None, count: int) -> list[str]:
    """Returns a caption per input; raises UserError for another number of them."""
    if captions is None or isinstance(captions, str):
        return [captions or ""] * count
    if len(captions) != count:
        what = f"{len(captions)} captions for {count} inputs"
        raise UserError(what, hint="give one for all, or one each")
    return [*captions]
