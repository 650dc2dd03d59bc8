"""Numbers of a scene come from its name alone and fall as they should; paints keep to their tones."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from modality_forcing.synthetic.scene_rng import FLOOR, Draw, patterned, surface_paint

HALF = (1.0, 2.0, 0.5)


def test_a_name_is_its_numbers_however_many_are_drawn():
    first, again = (Draw(3, "eval", 5) for _ in range(2))
    numbers = [first.between(0, 1) for _ in range(1300)]  # beyond what is drawn in one call
    assert numbers == [again.between(0, 1) for _ in range(1300)] and len(set(numbers)) == 1300
    for other in (Draw(4, "eval", 5), Draw(3, "train", 5), Draw(3, "eval", 6)):
        assert other.between(0, 1) not in numbers


def test_numbers_fall_as_they_should():
    draw, n = Draw(0, "train", 0), 4000
    plain = np.array([draw.between(-2, 6) for _ in range(n)])
    assert plain.min() >= -2 and plain.max() < 6 and abs(plain.mean() - 2) < 0.15
    spread = np.array([draw.spread(0.1, 10) for _ in range(n)])
    assert spread.min() >= 0.1 and spread.max() < 10 and abs(np.log10(spread).mean()) < 0.05
    assert abs(np.mean([draw.chance(0.3) for _ in range(n)]) - 0.3) < 0.03
    picked = [draw.pick(("a", "a", "b")) for _ in range(n)]
    assert set(picked) == {"a", "b"} and abs(picked.count("a") / n - 2 / 3) < 0.03


def test_a_surface_keeps_to_its_tones():
    for index in range(50):
        paint = surface_paint(Draw(0, "paint", index), HALF, "plain", FLOOR)
        for value, (low, high) in zip(colorsys.rgb_to_hsv(*paint.rgb), FLOOR, strict=True):
            assert low - 1e-9 <= value <= high + 1e-9


@pytest.mark.parametrize("pattern", ["checks", "stripes", "blots", "shade"])
def test_each_pattern_has_contrast_and_cells(pattern):
    paint = patterned(Draw(0, "paint", 1), (0.9, 0.1, 0.1), HALF, pattern, per_metre=2.0)
    assert paint.rgb == (0.9, 0.1, 0.1) and paint.contrast > 0 and any(paint.cells)
    plain = patterned(Draw(0, "paint", 1), (0.9, 0.1, 0.1), HALF, "plain", per_metre=2.0)
    assert plain.contrast == 0
