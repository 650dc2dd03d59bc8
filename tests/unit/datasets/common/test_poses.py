"""Poses: rotations of quaternions, and transforms that invert."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.datasets.common.poses import (
    invert_pose,
    make_pose,
    rotation_from_quaternion,
    transform_points,
)

number = st.floats(-1, 1, allow_subnormal=False)


@given(number, number, number, number)
def test_quaternion_gives_a_rotation_matrix(w: float, x: float, y: float, z: float):
    if np.linalg.norm([w, x, y, z]) < 1e-3:
        return
    rotation = rotation_from_quaternion(w, x, y, z)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    np.testing.assert_allclose(
        rotation_from_quaternion(-3 * w, -3 * x, -3 * y, -3 * z), rotation, atol=1e-12
    )
    np.testing.assert_allclose(rotation @ [x, y, z], [x, y, z], atol=1e-12)  # its axis


def test_quaternions_rotate_in_the_right_direction():
    half = np.sqrt(0.5)
    np.testing.assert_allclose(
        rotation_from_quaternion(half, 0, 0, half) @ [1, 0, 0], [0, 1, 0], atol=1e-12
    )
    np.testing.assert_allclose(
        rotation_from_quaternion(half, half, 0, 0) @ [0, 1, 0], [0, 0, 1], atol=1e-12
    )
    np.testing.assert_allclose(
        rotation_from_quaternion(half, 0, half, 0) @ [0, 0, 1], [1, 0, 0], atol=1e-12
    )
    for invalid in ((0, 0, 0, 0), (np.nan, 0, 0, 1)):
        with pytest.raises(ValueError, match="no rotation"):
            rotation_from_quaternion(*invalid)


def test_pose_and_its_inverse_cancel():
    pose = make_pose(rotation_from_quaternion(0.1, 0.5, -0.3, 0.8), np.array([1, 2, 3]))
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(transform_points(points, pose), points @ pose[:3, :3].T + [1, 2, 3])
    np.testing.assert_allclose(
        transform_points(transform_points(points, pose), invert_pose(pose)), points, atol=1e-12
    )
    np.testing.assert_allclose(pose @ invert_pose(pose), np.eye(4), atol=1e-12)
