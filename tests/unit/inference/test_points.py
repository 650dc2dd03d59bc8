"""Point clouds and meshes: geometry, edges, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.errors import UserError
from modality_forcing.inference import points
from modality_forcing.inference.result import Result

RNG = np.random.default_rng(0)
ROWS, COLUMNS = np.mgrid[:24, :40]
FLOOR = (2 + 0.03 * ROWS + 0.01 * COLUMNS).astype(np.float32)
IMAGE = RNG.integers(0, 256, (24, 40, 3), np.uint8)


def project(xyz: np.ndarray, fov: float, size=(24, 40)) -> tuple[np.ndarray, np.ndarray]:
    """Returns columns and rows of points."""
    x, y, _ = (xyz.astype(np.float64) @ points.camera(size, fov).T).T / xyz[:, 2]
    return x, y


@given(st.floats(5, 150), st.floats(1e-3, 1e4))
def test_points_reproject_to_their_depth_map(fov, unit):
    depth = (unit * FLOOR).astype(np.float32)
    cloud = points.cloud(Result(IMAGE, depth), fov)
    assert len(cloud.xyz) == depth.size
    columns, rows = project(cloud.xyz, fov)
    np.testing.assert_allclose(columns, COLUMNS.ravel(), atol=1e-5)
    np.testing.assert_allclose(rows, ROWS.ravel(), atol=1e-5)
    np.testing.assert_array_equal(cloud.xyz[:, 2], depth.ravel())
    np.testing.assert_array_equal(cloud.rgb, IMAGE.reshape(-1, 3))


def test_the_field_of_view_is_that_of_the_longer_side():
    for size in ((24, 40), (40, 24)):
        matrix = points.camera(size, 90)
        assert matrix[0, 0] == matrix[1, 1] == pytest.approx(20)
        assert (matrix[1, 2], matrix[0, 2]) == ((size[0] - 1) / 2, (size[1] - 1) / 2)
    with pytest.raises(UserError, match="the field of view is 180; give degrees between"):
        points.camera((2, 2), 180)


def test_jumps_and_unknown_pixels_are_left_out():
    depth = np.full((24, 40), 2, np.float32)
    depth[:, 20:] = 2.2
    depth[0, 0], depth[0, 1] = 0, np.nan
    valid = np.ones_like(depth, bool)
    valid[-1, -1] = False
    result = Result(IMAGE, depth, valid)
    kept = np.ones_like(valid)
    kept[:, 19:21] = kept[0, :2] = kept[-1, -1] = False
    cloud = points.cloud(result)
    np.testing.assert_array_equal(cloud.rgb, IMAGE[kept])
    mesh = points.mesh(result)
    np.testing.assert_array_equal(mesh.xyz, cloud.xyz)
    # 23 x 39 squares, less the three columns that touch the jump, less those at the corners.
    assert len(mesh.faces) == 2 * (23 * (39 - 3) - 2 - 1)
    corners = mesh.xyz[mesh.faces][:, :, 2]
    assert np.ptp(corners, axis=1).max() == 0
    assert len(points.cloud(result, edge=0.2).xyz) == depth.size - 3
    with pytest.raises(UserError, match="the tolerance of edges is 0; give a share of depth"):
        points.mesh(result, edge=0)


def test_faces_look_at_the_camera():
    mesh = points.mesh(Result(IMAGE, FLOOR))
    a, b, c = (mesh.xyz[mesh.faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    assert (np.sum(normals * a, axis=1) < 0).all()


@pytest.mark.parametrize("max_points", [400, 107, 30])
def test_large_maps_are_thinned(max_points: int):
    depth = FLOOR.copy()
    depth[10:, :] += 1  # a jump between rows 9 and 10
    cloud, mesh = (
        make(Result(IMAGE, depth), max_points=max_points) for make in (points.cloud, points.mesh)
    )
    assert 0 < len(cloud.xyz) <= max_points and len(mesh.xyz) == len(cloud.xyz)
    columns, rows = project(cloud.xyz, points.FOV)
    np.testing.assert_allclose(
        cloud.xyz[:, 2], depth[np.rint(rows).astype(int), np.rint(columns).astype(int)]
    )
    face_rows = rows[mesh.faces]
    assert len(mesh.faces) and not ((face_rows.min(1) < 9.5) & (face_rows.max(1) > 9.5)).any()


def test_what_cannot_be_written(tmp_path: Path):
    cloud = points.cloud(Result(IMAGE, FLOOR))
    with pytest.raises(UserError, match=r"cloud.obj: is neither .ply nor .glb"):
        points.write(cloud, tmp_path / "cloud.obj")
    with pytest.raises(UserError, match="this result has no depth"):
        points.cloud(Result(IMAGE))
    empty = points.cloud(Result(IMAGE, np.zeros_like(FLOOR)))
    with pytest.raises(UserError, match="no points: all pixels are unknown or at a jump of depth"):
        points.write(empty, tmp_path / "cloud.ply")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_one_line(unchecked):
    result = Result(IMAGE, FLOOR)
    for options, message in (
        ({"max_points": 0}, "max_points is 0; give a whole number of at least 1"),
        ({"max_points": 2.5}, "max_points is 2.5; give a whole number"),
        ({"fov": "a"}, "fov is 'a'; give a finite number"),
        ({"fov": 180}, "the field of view is 180; give degrees"),
        ({"edge": "b"}, "edge is 'b'; give a finite number"),
    ):
        for make in (points.cloud, points.mesh):
            with pytest.raises(UserError, match=message):
                make(result, **options)
