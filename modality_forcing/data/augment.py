"""Random crops and flips of a record: the picture is filtered, depth is picked and never mixed, intrinsics follow."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.data.resize import Window, fit, place
from modality_forcing.errors import UserError

_SIDES = re.compile(
    r"\b(left|right|leftmost|rightmost|clockwise|anticlockwise|counterclockwise)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Augment:
    """What training varies of a record; the defaults vary nothing and are `fit`.

    crop: least and most side of the square window, as a part of the shorter side of the picture; drawn evenly in
    logarithm, so that twice as near is as frequent as half as near. Where the picture has that many pixels, the window
    has `resolution` of them at least, since enlarging shows nothing more.
    shift: how far the window may stray from the middle, as a part of the room there is: 0 not at all, 1 to the edges.
    flip: probability of mirroring left and right. A picture of which the caption says left or right is not mirrored.
    Raises UserError for numbers out of range.
    """

    crop: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    flip: float = 0.0

    def __post_init__(self) -> None:
        least, most = self.crop
        if not 0 < least <= most <= 1:
            raise UserError(
                f"augment.crop is {least:g} to {most:g}",
                hint="it must rise from above 0 to at most 1",
            )
        for name, value in (("shift", self.shift), ("flip", self.flip)):
            if not 0 <= value <= 1:
                raise UserError(f"augment.{name} is {value:g}", hint="it must be from 0 to 1")

    def __call__(self, record: Record, resolution: int, rng: np.random.Generator) -> Record:
        """Returns the record at resolution x resolution pixels, cropped and mirrored as `rng` has it."""
        draws = rng.random(
            4
        )  # always as many, so that the window of an example does not depend on another setting
        window = self._window(record.depth.shape, resolution, draws)
        seen = place(record, window, resolution) if window else fit(record, resolution)
        mirrored = draws[3] < self.flip and not _SIDES.search(record.caption)
        return mirror(seen) if mirrored else seen

    def _window(self, size: tuple[int, int], resolution: int, draws: np.ndarray) -> Window | None:
        """Returns a square of whole pixels, or None where the middle is asked for, of which `fit` keeps every half pixel."""
        if self.crop == (1.0, 1.0) and not self.shift:
            return None
        short, (least, most) = min(size), self.crop
        side = round(short * math.exp(math.log(least) + draws[0] * math.log(most / least)))
        side = max(side, min(short, resolution), 1)
        top, left = (
            round((length - side) / 2 * (1 + self.shift * (2 * draw - 1)))
            for length, draw in zip(size, draws[1:3], strict=True)
        )
        return Window(top, left, side, side)


def mirror(record: Record) -> Record:
    """Returns the record as a mirror beside the camera shows it: x becomes -x, depth stays, captions are not read."""
    intrinsics = record.intrinsics.copy()
    intrinsics[0, 1] = -intrinsics[0, 1]
    # The first pixel's centre is 0, the last one's w - 1. NaN stays NaN.
    intrinsics[0, 2] = record.depth.shape[1] - 1 - intrinsics[0, 2]
    return replace(
        record,
        image=_mirrored(record.image),
        depth=_mirrored(record.depth),
        valid=_mirrored(record.valid),
        intrinsics=intrinsics,
        latents=None if record.latents is None else record.latents[::-1],
    )


def _mirrored(array: np.ndarray) -> np.ndarray:
    """Returns [h w] or [h w c] with left and right exchanged."""
    # NumPy reverses many short rows at a third of the speed of a long one, and pixels of 3 bytes one byte at a time: all
    # pixels are reversed at once, colour by colour, and the rows put in order again, which is a view.
    pixels = array.reshape(array.shape[0] * array.shape[1], -1)[::-1]
    turned = np.empty(pixels.shape, array.dtype)
    for colour in range(pixels.shape[1]):
        turned[:, colour] = pixels[:, colour]
    return turned.reshape(array.shape)[::-1]
