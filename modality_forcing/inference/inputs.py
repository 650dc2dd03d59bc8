"""What callers of the pipeline pass: paths, PIL images and arrays, one or a list."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from PIL import Image

from modality_forcing.data.files import (
    DECODE_ERRORS,
    DepthFormat,
    read_depth,
    read_image,
    upright_rgb,
)
from modality_forcing.data.resize import Size
from modality_forcing.errors import UserError
from modality_forcing.paths import as_path


@runtime_checkable
class ArrayLike(Protocol):
    """What numpy takes for an array, such as arrays of jax."""

    def __array__(self) -> np.ndarray: ...


ImageLike = Image.Image | np.ndarray | ArrayLike | str | Path
DepthLike = np.ndarray | ArrayLike | str | Path
T = TypeVar("T")


def as_image(image: object) -> np.ndarray:
    """Returns an image as u8 [h w 3]; raises UserError if it is no `ImageLike`.

    Arrays are u8: [h w 3], gray [h w] or [h w 1], or with transparency, [h w 4], put on white.
    """
    image = _array(image)
    if isinstance(image, str | Path):
        return read_image(as_path(image))
    if isinstance(image, Image.Image):
        return _decoded(image)
    if not isinstance(image, np.ndarray):
        what = f"{type(image).__name__} is no image"
        raise UserError(what, hint="give a path, a PIL image or an array u8 [h w 3]")
    if hint := _wrong_image(image):
        what = f"an image is u8 [h w 3], not {image.dtype} {list(image.shape)}"
        raise UserError(what, hint=hint)
    if image.ndim == 3 and image.shape[2] == 3:
        return image
    return _decoded(Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image))


def _wrong_image(image: np.ndarray) -> str:
    """Returns how to fix an array, or "" if it is an image."""
    if image.ndim not in (2, 3):
        return "give one image, or a list of them"
    if not image.size:
        return "it has no pixels"
    if image.ndim == 3 and image.shape[2] not in (1, 3, 4):
        first = image.shape[0] in (1, 3, 4)
        return "channels come last: transpose it" if first else "give 1, 3 or 4 channels"
    is_u8 = image.dtype == np.uint8
    return "" if is_u8 else "scale colors to 0 to 255 and convert them to np.uint8"


def _decoded(image: Image.Image) -> np.ndarray:
    where = getattr(image, "filename", "") or "the image"
    try:
        return upright_rgb(image, where)
    except (OSError, *DECODE_ERRORS) as error:
        raise UserError(f"cannot be decoded ({error})", where=where, hint="replace it") from error


def as_depth(depth: object) -> tuple[np.ndarray, np.ndarray]:
    """Returns depth f32 and valid bool [h w]; raises UserError if it is no `DepthLike`.

    0, NaN, inf and what is masked are not valid. A 16-bit PNG is in counts: the unit has no effect
    on images.
    """
    depth = _array(depth)
    if isinstance(depth, str | Path):
        return read_depth(as_path(depth), DepthFormat(scale=1.0))
    if not isinstance(depth, np.ndarray):
        what = f"{type(depth).__name__} is no depth map"
        raise UserError(what, hint="give a path or an array f32 [h w]")
    if depth.ndim != 2 or depth.dtype.kind not in "fiu" or not depth.size:
        what = f"depth is f32 [h w], not {depth.dtype} {list(depth.shape)}"
        hint = "give one number per pixel" if depth.size else "it has no pixels"
        raise UserError(what, hint=hint)
    with np.errstate(over="ignore"):
        values = depth.astype(np.float32)
    if (values < 0).any():
        raise UserError("depth holds negative values", hint="mark unknown pixels by 0")
    valid = np.isfinite(values) & (values > 0)
    if not valid.any():
        raise UserError("depth is nowhere valid", hint="give a pixel above 0")
    return np.where(valid, values, np.float32(0)), valid


def _array(value: object) -> object:
    """Returns what numpy takes for an array as one, all else as it is."""
    if isinstance(value, str | Path | Image.Image) or not isinstance(value, ArrayLike):
        return value
    try:
        # What is masked is unknown depth, as 0 is.
        return value.filled(0) if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    except Exception as error:  # of other libraries, such as a deleted array of jax
        what = f"{type(value).__name__} cannot be read as an array ({error})"
        raise UserError(what, hint="convert it with np.asarray") from error


def as_list(inputs: T | Sequence[T] | np.ndarray) -> tuple[list, bool]:
    """Returns inputs as a list and whether they were one; an array of four axes is one."""
    value = _array(inputs)
    if isinstance(value, np.ndarray):
        return ([*value], True) if value.ndim == 4 else ([value], False)
    if isinstance(value, str | Path | Image.Image):
        return [value], False
    what = f"{type(value).__name__} is no input"
    if isinstance(value, bytes | bytearray | memoryview):
        raise UserError(what, hint="open it with PIL.Image.open(io.BytesIO(content))")
    if isinstance(value, Sequence):
        return [*value], True
    raise UserError(what, hint="give a path, a PIL image, an array, or a list of them")


def as_texts(captions: object) -> tuple[list[str], bool]:
    """Returns captions as a list and whether they were one; raises UserError for no text."""
    if isinstance(captions, str):
        return [captions], False
    each: list = [captions]
    if isinstance(captions, Sequence | np.ndarray) and not isinstance(captions, bytes):
        each = [*captions]
    if wrong := [x for x in each if not isinstance(x, str)]:
        what = f"a caption is text, not {type(wrong[0]).__name__}"
        raise UserError(what, hint="give a str, or a list of them")
    return each, True


def as_captions(captions: Sequence[str] | str | None, count: int) -> list[str]:
    """Returns a caption per input; raises UserError for another number of them, or no text."""
    each, is_list = as_texts("" if captions is None else captions)
    if not is_list:
        return each * count
    if len(each) != count:
        what = f"{len(each)} captions for {count} inputs"
        raise UserError(what, hint="give one for all, or one each")
    return each


def as_location(where: object) -> Path:
    """Returns where weights are; raises UserError for what is neither a text nor a path."""
    if isinstance(where, str | Path):
        return as_path(where)
    what = f"a checkpoint is a path or an address, not {type(where).__name__}"
    raise UserError(what, hint="give a str or a pathlib.Path")


def as_whole(name: str, value: object, least: int, most: int = 2**63 - 1) -> int:
    """Returns a whole number of any library as an int; raises UserError outside of a range.

    most: by default the largest seed that jax takes.
    """
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = None
    if number is None or not least <= number <= most:
        hint = f"give a whole number of at least {least}"
        if number is not None and number > most:
            hint += " and below 2^63" if most == 2**63 - 1 else f" and at most {most}"
        raise UserError(f"{name} is {value!r}", hint=hint)
    return number


def as_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """Returns a number of any library as a float; raises UserError outside of a range, for NaN."""
    try:
        # Of a text "0.5", float would make a number; of arrays only those without axes are one.
        number = math.nan if isinstance(value, str | bytes) else float(value)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (least <= number <= most and math.isfinite(number)):
        limits = "finite number" if math.isinf(most) else f"number from {least:g} to {most:g}"
        raise UserError(f"{name} is {value!r}", hint=f"give a {limits}")
    return number


def as_size(value: object) -> Size:
    """Returns rows and columns of pixels; raises UserError for anything but two whole numbers."""
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and len(value) == 2:
        return as_whole("size", value[0], 1), as_whole("size", value[1], 1)
    raise UserError(f"size is {value!r}", hint="give rows and columns of pixels, as (512, 768)")
