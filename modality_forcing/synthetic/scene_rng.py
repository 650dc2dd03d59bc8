"""The random numbers of one scene, and materials in the muted colors of their surfaces."""

from __future__ import annotations

import colorsys
import math
import zlib
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from modality_forcing.synthetic.scene import Material, Triple
from modality_forcing.synthetic.world import Tones

_T = TypeVar("_T")


class SceneRng:
    """The random numbers of scene (seed, split, index), generated in blocks for speed."""

    def __init__(self, seed: int, split: str, index: int):
        entropy = np.random.SeedSequence((seed, zlib.crc32(split.encode()), index))
        rng = np.random.Generator(np.random.PCG64(entropy))
        self._next = _numbers(rng).__next__  # the next number in [0, 1)

    def uniform(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self._next()

    def log_uniform(self, low: float, high: float) -> float:
        """Uniform in the logarithm."""
        return low * (high / low) ** self._next()

    def bernoulli(self, probability: float) -> bool:
        """True with a probability."""
        return self._next() < probability

    def choice(self, options: Sequence[_T]) -> _T:
        """One of equally likely options; an option listed twice is twice as likely."""
        return options[int(self._next() * len(options))]


def _numbers(rng: np.random.Generator) -> Iterator[float]:
    while True:
        yield from rng.random(256).tolist()


def surface_material(rng: SceneRng, half: Triple, pattern: str, tones: Tones) -> Material:
    """Returns a material of a color within the tones; half: the surface's half extents, meters."""
    hue, saturation, value = (rng.uniform(*span) for span in tones)
    rgb = colorsys.hsv_to_rgb(hue, saturation, value)
    return patterned_material(
        rng, rgb=rgb, half=half, pattern=pattern, cells_per_meter=rng.log_uniform(0.6, 2.5)
    )


def patterned_material(
    rng: SceneRng, *, rgb: Triple, half: Triple, pattern: str, cells_per_meter: float
) -> Material:
    """Returns a material with a pattern: plain, checks, stripes, blots or shade."""
    contrast = rng.uniform(0.2, 0.45)
    if pattern == "plain":
        return Material(rgb)
    if pattern == "checks":
        x, y, z = (max(1.0, round(extent * cells_per_meter)) for extent in half)
        return Material(rgb, contrast, 5.0, (x, y, z), cells_per_meter=cells_per_meter)
    if pattern == "stripes":
        x, y, z = (max(1.0, round(extent * cells_per_meter)) for extent in half)
        cells = ((x, 0.0, 0.0), (0.0, y, 0.0), (0.0, 0.0, z))[int(rng.uniform(0, 2.99))]
        return Material(rgb, contrast, 4.0, cells, cells_per_meter=cells_per_meter)
    if pattern == "blots":
        density = 0.7 * half[0] * cells_per_meter, 0.7 * half[1] * cells_per_meter
        cells = (*density, 0.7 * half[2] * cells_per_meter)
        phase, warp = rng.uniform(0, 6), rng.uniform(0.8, 2.0)
        return Material(rgb, 0.7 * contrast, 0.6, cells, phase, warp, cells_per_meter)
    assert pattern == "shade", pattern
    return Material(rgb, contrast, 0.5, (0.0, 0.0, 0.5), -math.pi / 2)
