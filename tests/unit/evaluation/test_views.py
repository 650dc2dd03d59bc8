"""The view warp: what it must leave alone, and the geometry that it must keep."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.errors import UserError
from modality_forcing.evaluation.views import drop_far, masked_nearest, warp


def camera(fx=1.0, fy=1.0, cx=0.5, cy=0.5):
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)


def frame(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.uniform(1, 9, (height, width)).astype("f4"), rng.random((height, width)) < 0.8


def rays(intrinsics, width, height):
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics.astype(np.float64)).T


@pytest.mark.parametrize("size", [(24, 16), (16, 16), (15, 31)])
def test_a_frame_that_already_is_the_view_stays(size):
    width, height = size
    image, depth, valid = frame(height, width)
    k = camera(1.0, width / height)
    view = warp(image, depth, valid, k, size)
    np.testing.assert_array_equal(view.image, image)
    np.testing.assert_array_equal(view.valid, valid)
    np.testing.assert_allclose(view.depth[valid], depth[valid], rtol=1e-6)
    np.testing.assert_allclose(view.intrinsics, k, rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    st.floats(0.7, 2.0),
    st.floats(0.4, 0.6),
    st.floats(0.4, 0.6),
    st.sampled_from([(32, 32), (48, 24), (20, 30)]),
)
def test_a_plane_stays_that_plane(f, cx, cy, size):
    """The plane n . x = 4 of the raw camera lies as far along the axis of the view as it lay along that ray before."""
    height, width = 90, 120
    k, n = camera(f, f * width / height, cx, cy), np.array([0.05, 0.1, 1.0])
    depth = (4 / (rays(k, width, height) @ n)).astype("f4")
    view = warp(
        np.zeros((height, width, 3), np.uint8), depth, np.ones((height, width), bool), k, size
    )
    assert view.valid.mean() > 0.95
    middle = np.linalg.inv(k.astype(np.float64)) @ (0.5, 0.5, 1)
    axis = middle / np.linalg.norm(middle)
    at = size[1] // 2, size[0] // 2
    expected = 4 / (axis @ n)
    assert view.depth[at] == pytest.approx(expected, rel=0.03)
    np.testing.assert_allclose(view.intrinsics[:2, 2], 0.5)
    assert view.intrinsics[0, 0] >= k[0, 0] * (1 - 1e-6) and view.intrinsics[1, 1] >= k[1, 1] * (
        1 - 1e-6
    )
    assert view.intrinsics[1, 1] / view.intrinsics[0, 0] == pytest.approx(
        size[0] / size[1], rel=1e-5
    )


def test_the_unit_of_depth_only_scales():
    image, depth, valid = frame(40, 60)
    k = camera(0.9, 1.3, 0.45, 0.55)
    plain, scaled = (warp(image, x, valid, k, (32, 32)) for x in (depth, 1000 * depth))
    np.testing.assert_array_equal(plain.valid, scaled.valid)
    np.testing.assert_allclose(scaled.depth, 1000 * plain.depth, rtol=1e-6)


def test_far_pixels_are_dropped_by_quantile():
    depth = np.ones((10, 20), np.float32)
    depth[0, :2] = 999, 1001
    valid = np.ones((10, 20), bool)
    kept = drop_far(depth, valid)
    assert kept.sum() == 199 and not kept[0, 1]
    none = np.zeros_like(valid)
    assert not drop_far(depth, none).any()


def test_the_nearest_valid_pixel_stands_for_a_cell():
    valid = np.zeros((6, 6), bool)
    valid[1, 2] = valid[4, 4] = True
    rows, columns, known = masked_nearest(valid, (2, 2))
    np.testing.assert_array_equal(known, [[True, False], [False, True]])
    assert (rows[0, 0], columns[0, 0], rows[1, 1], columns[1, 1]) == (1, 2, 4, 4)


def test_what_is_no_camera_is_refused():
    image, depth, valid = frame(8, 8)
    with pytest.raises(UserError, match="no camera"):
        warp(image, depth, valid, camera(0.0), (8, 8))
    with pytest.raises(ValueError):
        warp(image[:4], depth, valid, camera(), (8, 8))
