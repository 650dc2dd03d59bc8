"""Random crops, flips and captions of a record.

Images are filtered, depth is picked, intrinsics follow.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.data.resize import Window, center_crop_resize, crop_resize
from modality_forcing.errors import UserError

_SIDES = re.compile(
    r"\b(left|right|leftmost|rightmost|clockwise|anticlockwise|counterclockwise)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Augment:
    """Random crops and flips; by default only the center square, `center_crop_resize`.

    crop_range: smallest and largest side of the square window, as a fraction of the image's shorter
      side; log-uniform between them. A window has at least `resolution` pixels where the image
      does, since enlarging adds no detail.
    crop_jitter: how far the window may be from the center: 0 stays there, 1 reaches the edges.
    flip_prob: probability of a horizontal flip. None for captions that mention left or right.
    Raises UserError for numbers out of range.
    """

    crop_range: tuple[float, float] = (1.0, 1.0)
    crop_jitter: float = 0.0
    flip_prob: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.crop_range
        if not 0 < low <= high <= 1:
            what = f"augment.crop_range is {low:g} to {high:g}"
            raise UserError(what, hint="it must rise from above 0 to at most 1")
        for name in ("crop_jitter", "flip_prob"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise UserError(f"augment.{name} is {value:g}", hint="it must be from 0 to 1")

    def __call__(self, record: Record, resolution: int, rng: np.random.Generator) -> Record:
        """Returns the augmented record at resolution x resolution pixels, with one caption."""
        if record.other_captions:
            captions = (record.caption, *record.other_captions)
            chosen = captions[int(rng.integers(len(captions)))]
            record = replace(record, caption=chosen, other_captions=())
        # Always four numbers, so that one setting does not change what the others sample.
        uniform = rng.random(4)
        window = self._sample_window(record.depth.shape, resolution, uniform)
        if window is None:
            cropped = center_crop_resize(record, resolution)
        else:
            cropped = crop_resize(record, window, resolution)
        flips = uniform[3] < self.flip_prob and not _SIDES.search(record.caption)
        return hflip(cropped) if flips else cropped

    def _sample_window(
        self, size: tuple[int, ...], resolution: int, uniform: np.ndarray
    ) -> Window | None:
        """Returns a square of whole pixels; None is the center square, which may have half ones."""
        if self.crop_range == (1.0, 1.0) and not self.crop_jitter:
            return None
        short, (low, high) = min(size), self.crop_range
        side = round(short * math.exp(math.log(low) + uniform[0] * math.log(high / low)))
        side = max(side, min(short, resolution), 1)
        top, left = (
            round((length - side) / 2 * (1 + self.crop_jitter * (2 * u - 1)))
            for length, u in zip(size, uniform[1:3], strict=True)
        )
        return Window(top, left, side, side)


def hflip(record: Record) -> Record:
    """Returns the record of the mirrored scene: x becomes -x. The caption is not changed."""
    normals = record.normals
    if normals is not None:
        normals = _reverse_columns(normals) * np.array((-1, 1, 1), np.float32)
    intrinsics = record.intrinsics.copy()
    intrinsics[0, 1] = -intrinsics[0, 1]
    # The first pixel's center is 0, the last one's w - 1. NaN stays NaN.
    intrinsics[0, 2] = record.depth.shape[1] - 1 - intrinsics[0, 2]
    return replace(
        record,
        image=_reverse_columns(record.image),
        depth=_reverse_columns(record.depth),
        valid=_reverse_columns(record.valid),
        intrinsics=intrinsics,
        latents=None if record.latents is None else record.latents[::-1],
        normals=normals,
    )


def _reverse_columns(array: np.ndarray) -> np.ndarray:
    """Returns [h w] or [h w c] with its columns in reverse."""
    # NumPy reverses many short rows at a third of the speed of one long row, and 3-byte pixels one
    # byte at a time: reverse all pixels at once, channel by channel, then the rows (a view).
    pixels = array.reshape(array.shape[0] * array.shape[1], -1)[::-1]
    reversed_pixels = np.empty(pixels.shape, array.dtype)
    for channel in range(pixels.shape[1]):
        reversed_pixels[:, channel] = pixels[:, channel]
    return reversed_pixels.reshape(array.shape)[::-1]
