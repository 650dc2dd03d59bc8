"""What chance decides of one scene: uniform numbers, all from its index, and paints by the tones of their place."""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from modality_forcing.synthetic.raycast import Paint, Triple

_T = TypeVar("_T")

Tones = tuple[
    tuple[float, float], tuple[float, float], tuple[float, float]
]  # ranges of hue, saturation, value

# As in most places, floors are warm and dark, ceilings pale, grounds green to brown. All are muted, so that a strong
# colour always belongs to a thing that the caption may name.
FLOOR: Tones = ((0.02, 0.12), (0.2, 0.3), (0.4, 0.65))
WALL: Tones = ((0.45, 0.8), (0.0, 0.2), (0.6, 0.85))
CEILING: Tones = ((0.1, 0.2), (0.0, 0.08), (0.88, 0.98))
GROUND: Tones = ((0.1, 0.32), (0.15, 0.3), (0.4, 0.65))
FENCE: Tones = ((0.45, 0.8), (0.0, 0.2), (0.5, 0.75))


class Draw:
    """Uniform numbers for one scene, drawn in one call, with the few distributions the world needs."""

    def __init__(self, seed: int, split: str, index: int):
        entropy = np.random.SeedSequence((seed, zlib.crc32(split.encode()), index))
        self._rng = np.random.Generator(np.random.PCG64(entropy))
        self._numbers: Iterator[float] = iter(())

    def _next(self) -> float:
        for number in self._numbers:
            return number
        self._numbers = iter(self._rng.random(512).tolist())
        return next(self._numbers)

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self._next()

    def spread(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return low * (high / low) ** self._next()

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self._next() < probability

    def pick(self, options: Sequence[_T]) -> _T:
        """One of the options, each as likely; one given twice is twice as likely."""
        return options[int(self._next() * len(options))]


def surface_paint(draw: Draw, half: Triple, pattern: str, tones: Tones) -> Paint:
    """Returns a paint of a colour within the tones, for a surface of half its extents in metres."""
    hue, saturation, value = (draw.between(*span) for span in tones)
    tone = colorsys.hsv_to_rgb(hue, saturation, value)
    return patterned(draw, tone, half, pattern, draw.spread(0.6, 2.5))


def patterned(draw: Draw, rgb: Triple, half: Triple, pattern: str, per_metre: float) -> Paint:
    """Returns a paint of a colour in a pattern: plain, checks, stripes, blots or shade, so many cells a metre."""
    contrast = draw.between(0.2, 0.45)
    x, y, z = (max(1.0, round(extent * per_metre)) for extent in half)
    if pattern == "checks":
        return Paint(rgb, contrast, 5.0, (x, y, z), per_metre=per_metre)
    if pattern == "stripes":
        cells = ((x, 0.0, 0.0), (0.0, y, 0.0), (0.0, 0.0, z))[int(draw.between(0, 2.99))]
        return Paint(rgb, contrast, 4.0, cells, per_metre=per_metre)
    if pattern == "blots":
        cells = (0.7 * half[0] * per_metre, 0.7 * half[1] * per_metre, 0.7 * half[2] * per_metre)
        return Paint(
            rgb, 0.7 * contrast, 0.6, cells, draw.between(0, 6), draw.between(0.8, 2.0), per_metre
        )
    if pattern == "shade":
        return Paint(rgb, contrast, 0.5, (0.0, 0.0, 0.5), -math.pi / 2)
    return Paint(rgb)
