"""The camera's intrinsics, and which solids captions may name."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modality_forcing.synthetic.scene import Camera, Material, SceneObject

LEVEL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))


def test_intrinsics_span_the_field_of_view():
    camera = Camera((0.0, 0.0, 1.0), LEVEL, 70.0)
    matrix = camera.intrinsics(40)
    # The outer edge of the last pixel is half a pixel beyond its center.
    right, left = ((edge - matrix[0, 2]) / matrix[0, 0] for edge in (39.5, -0.5))
    assert math.degrees(math.atan(right)) == pytest.approx(35.0, abs=1e-4) and right == -left
    np.testing.assert_array_equal(matrix[2], [0, 0, 1])


def test_walls_are_not_nameable():
    half, gray = (1.0, 1.0, 1.0), Material((0.5, 0.5, 0.5))
    named = {k: SceneObject(k, "", half, half, LEVEL, gray).nameable for k in ("box", "wall")}
    assert named == {"box": True, "wall": False}
