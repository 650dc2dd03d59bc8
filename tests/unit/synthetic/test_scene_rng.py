"""Random numbers of a scene depend on its name alone; colors are within their tones."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from modality_forcing.synthetic.scene_rng import SceneRng, patterned_material, surface_material
from modality_forcing.synthetic.world import VARIED

HALF = (1.0, 2.0, 0.5)


def test_numbers_depend_on_the_name_alone():
    first, again = (SceneRng(3, "eval", 5) for _ in range(2))
    numbers = [first.uniform(0, 1) for _ in range(1300)]  # beyond what is drawn in one call
    assert numbers == [again.uniform(0, 1) for _ in range(1300)] and len(set(numbers)) == 1300
    for other in (SceneRng(4, "eval", 5), SceneRng(3, "train", 5), SceneRng(3, "eval", 6)):
        assert other.uniform(0, 1) not in numbers


def test_distributions():
    rng, n = SceneRng(0, "train", 0), 4000
    plain = np.array([rng.uniform(-2, 6) for _ in range(n)])
    assert plain.min() >= -2 and plain.max() < 6 and abs(plain.mean() - 2) < 0.15
    log_uniform = np.array([rng.log_uniform(0.1, 10) for _ in range(n)])
    assert log_uniform.min() >= 0.1 and log_uniform.max() < 10
    assert abs(np.log10(log_uniform).mean()) < 0.05
    assert abs(np.mean([rng.bernoulli(0.3) for _ in range(n)]) - 0.3) < 0.03
    picked = [rng.choice(("a", "a", "b")) for _ in range(n)]
    assert set(picked) == {"a", "b"} and abs(picked.count("a") / n - 2 / 3) < 0.03


def test_surface_colors_are_within_their_tones():
    tones = VARIED.floor.tones
    for index in range(50):
        material = surface_material(SceneRng(0, "paint", index), HALF, "plain", tones)
        for value, (low, high) in zip(colorsys.rgb_to_hsv(*material.rgb), tones, strict=True):
            assert low - 1e-9 <= value <= high + 1e-9


@pytest.mark.parametrize("pattern", ["checks", "stripes", "blots", "shade"])
def test_patterns_have_contrast_and_cells(pattern):
    options = {"rgb": (0.9, 0.1, 0.1), "half": HALF, "cells_per_meter": 2.0}
    material = patterned_material(SceneRng(0, "paint", 1), pattern=pattern, **options)
    assert material.rgb == (0.9, 0.1, 0.1) and material.contrast > 0 and any(material.cells)
    plain = patterned_material(SceneRng(0, "paint", 1), pattern="plain", **options)
    assert plain.contrast == 0
