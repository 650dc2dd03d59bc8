"""Scans to sparse depth: motion, the nearest point of a pixel, and occlusion."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.common.lidar import (
    finite_points,
    occlusion_mask,
    project_points,
    rasterize_points,
    to_camera,
)
from modality_forcing.datasets.common.poses import make_pose, rotation_from_quaternion

CAMERA = Camera("pinhole", (100, 200), 100, 100, 99.5, 49.5)


def seen_at(pixels: np.ndarray, z: np.ndarray, camera: Camera = CAMERA) -> np.ndarray:
    """Returns points [n 3] that project to pixels [n 2]."""
    directions = camera.unproject(pixels)
    return np.concatenate([directions, np.ones((len(z), 1))], axis=1) * np.asarray(z)[:, None]


def test_nonfinite_points_are_dropped():
    points = np.array([[1, 2, 3], [np.nan, 2, 3], [1, 2, -np.inf], [4, 5, 6]], np.float32)
    np.testing.assert_array_equal(finite_points(points), points[[0, 3]])
    assert finite_points(points[[0, 3]]).tolist() == [[1, 2, 3], [4, 5, 6]]


def test_motion_between_scan_and_image_is_corrected():
    """A car drives 2 m and turns by 90 degrees, with a camera 1 m ahead of its center."""
    # Camera to car.
    ahead = np.array([[0, 0, 1, 1], [-1, 0, 0, 0], [0, -1, 0, 0.5], [0, 0, 0, 1]], float)
    here = np.array([3e6, 4e6, 10])
    scanned = make_pose(np.eye(3), here)
    turned = make_pose(
        rotation_from_quaternion(np.sqrt(0.5), 0, 0, np.sqrt(0.5)), np.array([3e6 + 2, 4e6, 10])
    )
    point = np.array([[2, 10, 1.5]], np.float32)  # 10 m to the left of where the car will be
    expected = [[0, -1, 9]]
    np.testing.assert_allclose(to_camera(point, scanned, turned, ahead), expected, atol=1e-8)
    np.testing.assert_allclose(to_camera(point, scanned, turned @ ahead), expected, atol=1e-8)
    np.testing.assert_allclose(to_camera(point, scanned, scanned, ahead), [[-10, -1, 1]], atol=1e-8)


def test_nearest_point_of_a_pixel_is_kept():
    pixels = np.array([[10.0, 20.0], [10.4, 19.6], [9.5, 20.49], [10.5, 20.0], [0, 0], [199, 99]])
    z = np.array([9.0, 4.0, 7.0, 3.0, 5.0, 6.0], np.float32)
    for order in (slice(None), slice(None, None, -1)):
        depth, valid = project_points(seen_at(pixels, z)[order], CAMERA)
        assert depth.dtype == np.float32 and depth.shape == (100, 200) and valid.dtype == np.bool_
        rows, columns = np.nonzero(valid)
        assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [
            (0, 0),
            (20, 10),
            (20, 11),
            (99, 199),
        ]
        np.testing.assert_allclose(depth[valid], [5, 4, 3, 6], rtol=1e-6)
        assert (depth[~valid] == 0).all()


def test_points_outside_the_view_are_dropped():
    pixels = np.array([[-0.6, 5], [199.6, 5], [5, -0.6], [5, 99.6], [50, 50], [60, 50]])
    z = np.array([5, 5, 5, 5, -5, 0.4])
    _, valid = project_points(seen_at(pixels, z), CAMERA)
    assert not valid.any()
    _, valid = project_points(seen_at(pixels, z), CAMERA, min_depth=0.3)
    assert valid.sum() == 1
    depth, valid = project_points(np.zeros((0, 3), np.float32), CAMERA)
    assert not valid.any() and not depth.any()


def test_points_beyond_the_fold_of_a_lens_are_dropped():
    lens = Camera("radial", (100, 200), 100, 100, 99.5, 49.5, (-0.3,))
    _, valid = project_points(np.array([[1.6, 0, 1.0], [0.5, 0, 1.0]]), lens)
    assert valid.sum() == 1 and valid[50, 145 + 1]


def test_projection_to_another_resolution():
    pixels = np.array([[0, 0], [7.4, 0], [7.6, 0], [199, 99]])
    depth, valid = project_points(seen_at(pixels, np.array([5, 6, 7, 8])), CAMERA, (25, 25))
    assert np.argwhere(valid).tolist() == [[0, 0], [0, 1], [24, 24]]
    np.testing.assert_allclose(depth[valid], [5, 7, 8], rtol=1e-6)


def grid(step: int, top: int = 0, bottom: int = 100, left: int = 0, right: int = 200) -> np.ndarray:
    rows, columns = np.mgrid[top:bottom:step, left:right:step]
    return np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float64)


def test_points_behind_a_near_surface_are_dropped():
    near = grid(1, 40, 60, 80, 120)
    behind = np.array([[100.0, 50.0], [90.0, 45.0], [78.0, 50.0], [100.0, 30.0]])
    found = occlusion_mask(
        np.concatenate([near, behind]), np.array([10.0] * len(near) + [30, 30, 30, 30]), (100, 200)
    )
    # The cell itself has nearer points too; its neighbors decide.
    assert (
        found[len(near) :].tolist() == [True, True, False, False] and not found[: len(near)].any()
    )
    depth, valid = rasterize_points(behind, np.full(4, 30.0, np.float32), (100, 200))
    assert valid.sum() == 4 and depth[50, 100] == 30


@pytest.mark.parametrize(
    ("before", "z", "is_hidden"),
    [(5, 5.9, False), (5, 6.1, True), (10, 11.2, True), (20, 21.9, False), (20, 22.1, True)],
)
def test_occlusion_threshold(before: float, z: float, is_hidden: bool):
    near = np.array(
        [[x, y] for x in (98, 99, 100) for y in (48, 49, 50) if (x, y) != (99, 49)], float
    )
    found = occlusion_mask(
        np.concatenate([near, [[99.0, 49.0]]]), np.array([before] * 8 + [z]), (100, 200)
    )
    assert found.tolist() == [False] * 8 + [is_hidden]


@pytest.mark.parametrize("removed", [(98, None), (100, None), (None, 48), (None, 50)])
def test_point_with_one_free_side_is_kept(removed):
    near = [
        [x, y]
        for x in (98, 99, 100)
        for y in (48, 49, 50)
        if (x, y) != (99, 49) and x != removed[0] and y != removed[1]
    ]
    found = occlusion_mask(
        np.array([*near, [99.0, 49.0]]), np.array([5.0] * len(near) + [30.0]), (100, 200)
    )
    assert not found.any()


@given(st.floats(1.2, 2.5), st.integers(1, 3))
def test_road_is_never_occluded(height: float, step: int):
    """On a plane up to 100 m, each row is nearer than the one above by far more than 10%."""
    pixels = grid(step, 52, 100)
    z = 100 * height / (pixels[:, 1] - 49.5)
    assert not occlusion_mask(pixels, z, (100, 200)).any()
    wall = grid(step, 0, 100, 105, 200)  # a house front along the road
    assert not occlusion_mask(wall, 100 * height / (wall[:, 0] - 99.5), (100, 200)).any()


def test_occluded_points_can_be_kept():
    near = grid(1, 40, 60, 80, 120)
    near = near[~((near == [100, 50]).all(axis=1))]
    points = seen_at(np.concatenate([near, [[100, 50]]]), np.array([10.0] * len(near) + [30]))
    assert not project_points(points, CAMERA)[1][50, 100] and project_points(points, CAMERA)[
        1
    ].sum() == len(near)
    assert project_points(points, CAMERA, drop_occluded=False)[0][50, 100] == 30
    small = (100, 200)
    # Occlusion is decided at image resolution, not at the output's.
    larger = Camera("pinhole", (200, 400), 200, 200, 199.5, 99.5)
    np.testing.assert_array_equal(
        project_points(points, larger, small)[1], project_points(points, CAMERA)[1]
    )
