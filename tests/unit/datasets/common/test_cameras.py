"""Camera models: published projection formulas, unprojection, and undistortion of images."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.datasets.common.cameras import (
    Camera,
    Model,
    enclosed_pinhole,
    pixel_grid,
    undistort,
    z_from_range,
)

SIZE = (48, 64)
LENSES: dict[str, tuple[Model, tuple[float, ...]]] = {
    "pinhole": ("pinhole", ()),
    "SIMPLE_RADIAL": ("radial", (-0.0336,)),
    "RADIAL": ("radial", (-0.2, 0.05)),
    "pincushion": ("radial", (0.15,)),
    "brown": ("brown", (-0.28, 0.08, 0.001, -0.002, -0.01)),
    "brown of four": ("brown", (0.04, -0.1, 0.001, 0.0)),
    "opencv_fisheye": ("opencv_fisheye", (0.05, -0.02, 0.004, -0.001)),
    "ETH3D's": ("thin_prism_fisheye", (0.22, 0.17, -0.0004, -0.0003, 0.0, 0.09, -0.0002, 0.0001)),
    "Aria's": (
        "fisheye624",
        (
            0.3877,
            -0.3156,
            -0.3434,
            1.8565,
            -2.1799,
            0.7713,
            -0.0002747,
            0.0005228,
            0.0001348,
            -8.48e-05,
            -0.000942,
            -0.0001276,
        ),
    ),
}
each_lens = pytest.mark.parametrize("name", LENSES)


def camera(name: str, focal: float = 50.0) -> Camera:
    model, distortion = LENSES[name]
    return Camera(model, SIZE, focal, 1.1 * focal, 31.0, 24.5, distortion)


def ahead(directions: np.ndarray) -> np.ndarray:
    """Points [n 3] at depth 1."""
    return np.concatenate([directions, np.ones((len(directions), 1))], axis=1)


@each_lens
def test_every_pixel_round_trips(name: str):
    pixels = pixel_grid(SIZE).reshape(-1, 2)
    again, ok = camera(name).project(7 * ahead(camera(name).unproject(pixels)))
    assert ok.all()
    np.testing.assert_allclose(again, pixels, atol=1e-7)


@each_lens
@given(st.floats(-0.6, 0.6), st.floats(-0.4, 0.4), st.floats(0.1, 200))
def test_points_round_trip(name: str, x: float, y: float, z: float):
    pixels, ok = camera(name).project(np.array([[x * z, y * z, z]]))
    assert ok.all()
    np.testing.assert_allclose(camera(name).unproject(pixels), [[x, y]], atol=1e-8)


# Outputs of OpenCV 5.0: projectPoints and fisheye.projectPoints.
POINTS = np.array([[0.3, -0.2, 1.0], [-0.6, 0.4, 1.5], [0.05, 0.9, 2.0]])


def test_brown_model_equals_opencv():
    brown = Camera("brown", (720, 1280), 700, 710, 639.5, 359.5, LENSES["brown"][1])
    expected = [
        [841.6173063, 222.79943574],
        [375.5363494, 537.93501030],
        [655.79060951, 662.25607892],
    ]
    np.testing.assert_allclose(brown.project(POINTS)[0], expected, atol=1e-7)


def test_fisheye_model_equals_opencv():
    fisheye = Camera(
        "opencv_fisheye", (720, 1280), 400, 410, 639.5, 359.5, LENSES["opencv_fisheye"][1]
    )
    expected = [
        [755.32869709, 280.35039032],
        [488.97439213, 462.35916538],
        [648.97347716, 534.28565359],
    ]
    np.testing.assert_allclose(fisheye.project(POINTS)[0], expected, atol=1e-7)


def test_thin_prism_fisheye_equals_its_formula():
    k1, k2, p1, p2, k3, k4, sx, sy = terms = (0.22, 0.17, -0.04, 0.03, 0.01, 0.09, -0.02, 0.05)
    x, y = 0.5, -0.3
    theta, r = np.arctan(np.hypot(x, y)), np.hypot(x, y)
    u, v = theta * x / r, theta * y / r
    q = u * u + v * v
    radial = k1 * q + k2 * q**2 + k3 * q**3 + k4 * q**4
    du = u * radial + 2 * p1 * u * v + p2 * (q + 2 * u * u) + sx * q
    dv = v * radial + 2 * p2 * u * v + p1 * (q + 2 * v * v) + sy * q
    got, _ = Camera("thin_prism_fisheye", SIZE, 50, 60, 30, 20, terms).project(
        np.array([[x, y, 1.0]])
    )
    np.testing.assert_allclose(got, [[50 * (u + du) + 30, 60 * (v + dv) + 20]])


def test_fisheye624_equals_its_formula():
    terms = (0.1, -0.2, 0.05, 0.03, -0.02, 0.01, 0.04, -0.03, 0.02, 0.01, -0.05, 0.06)
    k, p0, p1, (s0, s1, s2, s3) = terms[:6], terms[6], terms[7], terms[8:]
    x, y = -0.4, 0.7
    theta, r = np.arctan(np.hypot(x, y)), np.hypot(x, y)
    far = theta + sum(k[i] * theta ** (2 * i + 3) for i in range(6))
    u, v = far * x / r, far * y / r
    q = u * u + v * v
    u_p = u + p0 * (2 * u * u + q) + 2 * p1 * u * v + s0 * q + s1 * q * q
    v_p = v + p1 * (2 * v * v + q) + 2 * p0 * u * v + s2 * q + s3 * q * q
    got, _ = Camera("fisheye624", SIZE, 50, 60, 30, 20, terms).project(np.array([[x, y, 1.0]]))
    np.testing.assert_allclose(got, [[50 * u_p + 30, 60 * v_p + 20]])


def test_points_behind_the_camera_or_beyond_the_fold_are_invalid():
    folding = Camera(
        "radial", SIZE, 50, 50, 31.5, 23.5, (-0.3,)
    )  # r - 0.3 r^3 turns at r = 1.054, where it is 0.703
    points = np.array(
        [[0.0, 0, 1], [1.0, 0, 1], [1.1, 0, 1], [1.8, 0, 1], [0.1, 0, -1], [0.1, 0, 0]]
    )
    pixels, ok = folding.project(points)
    assert ok.tolist() == [True, True, False, False, False, False]
    assert np.isfinite(pixels).all()
    seen = folding.unproject(np.array([[31.5 + 50 * 0.7, 23.5], [31.5 + 50 * 0.71, 23.5]]))
    assert np.isfinite(seen[0]).all() and np.isnan(seen[1]).all()


def test_fisheye_projects_up_to_90_degrees():
    fisheye = Camera("opencv_fisheye", SIZE, 20, 20, 31.5, 23.5, (0.0, 0.0, 0.0, 0.0))
    wide = np.radians(80)
    pixels, ok = fisheye.project(np.array([[np.sin(wide), 0, np.cos(wide)], [1, 0, -0.2]]))
    assert ok.tolist() == [True, False]
    np.testing.assert_allclose(pixels[0], [31.5 + 20 * wide, 23.5])
    assert np.isnan(fisheye.unproject(np.array([[31.5 + 20 * 1.6, 23.5]]))).all()


def wave(directions: np.ndarray) -> np.ndarray:
    """A smooth image painted on the plane at distance 1, [... 3] of [... 2]."""
    x, y = directions[..., 0], directions[..., 1]
    return np.stack(
        [127 + 100 * np.sin(6 * x), 127 + 100 * np.cos(5 * y), 127 + 90 * np.sin(4 * (x + y))],
        axis=-1,
    )


@pytest.mark.parametrize("name", ["RADIAL", "brown", "opencv_fisheye", "ETH3D's", "Aria's"])
def test_undistorted_image_equals_the_pinhole_view(name: str):
    lens = camera(name)
    directions = lens.unproject(pixel_grid(SIZE).reshape(-1, 2)).reshape(*SIZE, 2)
    image = np.rint(wave(directions)).astype(np.uint8)
    depth = (2 + directions[..., 0]).astype(np.float32)  # a wall that recedes to the right
    valid = np.ones(SIZE, bool)
    valid[20:24, 30:36] = False
    pinhole = enclosed_pinhole(lens)
    assert pinhole.is_pinhole and pinhole.size == SIZE
    undistorted, z, seen = undistort(image, depth, valid, lens, to=pinhole)
    expected = pinhole.unproject(pixel_grid(SIZE).reshape(-1, 2)).reshape(*SIZE, 2)
    assert np.abs(undistorted - wave(expected)).max() < 4
    assert 0.97 < seen.mean() < 1 and (z[~seen] == 0).all()
    assert np.isin(z[seen], depth[valid]).all()
    assert np.abs(z - (2 + expected[..., 0]))[seen].max() < 0.02  # a little more than half a pixel
    assert undistorted.dtype == np.uint8 and z.dtype == np.float32 and seen.dtype == np.bool_


def test_pixels_beyond_the_image_are_black():
    lens = camera("RADIAL")
    pinhole = Camera("pinhole", (30, 80), 25, 25, 39.5, 14.5)
    undistorted, _, seen = undistort(
        np.full((*SIZE, 3), 200, np.uint8),
        np.ones(SIZE, np.float32),
        np.ones(SIZE, bool),
        lens,
        to=pinhole,
    )
    assert seen.shape == (30, 80) and seen[15, 40] and not seen[:, 0].any()
    assert (undistorted[seen] == 200).all() and (undistorted[~seen] == 0).all()


def test_undistortion_without_distortion_is_the_identity():
    rng = np.random.default_rng(0)
    image, depth = rng.integers(0, 256, (*SIZE, 3), np.uint8), rng.random(SIZE, np.float32)
    valid = rng.random(SIZE) < 0.5
    lens = camera("pinhole")
    undistorted, z, seen = undistort(image, depth, valid, lens, to=lens)
    np.testing.assert_array_equal(undistorted, image)
    np.testing.assert_array_equal(seen, valid)
    np.testing.assert_array_equal(z, np.where(valid, depth, 0))
    with pytest.raises(ValueError, match="for a camera of"):
        undistort(image, depth[1:], valid[1:], lens, to=lens)


def test_ray_distance_becomes_depth():
    lens = Camera("pinhole", (3, 5), 2, 2, 2, 1)
    z = z_from_range(np.full((3, 5), 3, np.float32), lens)
    rows, columns = np.mgrid[:3, :5]
    np.testing.assert_allclose(
        z, 3 * 2 / np.sqrt((columns - 2) ** 2 + (rows - 1) ** 2 + 4), rtol=1e-6
    )
    assert z.dtype == np.float32 and z[1, 2] == 3


@each_lens
def test_ray_distance_to_a_wall_becomes_constant_depth(name: str):
    directions = camera(name).unproject(pixel_grid(SIZE).reshape(-1, 2))
    distance = 4 * np.linalg.norm(ahead(directions), axis=1).reshape(SIZE)
    np.testing.assert_allclose(z_from_range(distance, camera(name)), 4, rtol=1e-6)


def test_corners_of_a_fisheye_have_no_depth():
    fisheye = Camera("opencv_fisheye", SIZE, 20, 20, 31.5, 23.5, (0.0, 0.0, 0.0, 0.0))
    z = z_from_range(np.ones(SIZE, np.float32), fisheye)
    assert np.isnan(z[0, 0]) and abs(z[23, 31] - 1) < 1e-3


def test_matrix_is_normalized_intrinsics():
    matrix = camera("pinhole").matrix
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, [[50, 0, 31], [0, 55, 24.5], [0, 0, 1]])
    assert camera("pinhole").is_pinhole and not camera("brown").is_pinhole
    assert Camera("brown", SIZE, 50, 50, 31, 24, (0.0, 0.0, 0.0, 0.0)).is_pinhole


def test_invalid_numbers_are_refused():
    with pytest.raises(ValueError, match="3 distortion terms"):
        Camera("brown", SIZE, 50, 50, 31, 24, (0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="out of range"):
        Camera("pinhole", SIZE, 0, 50, 31, 24)
    with pytest.raises(ValueError, match="out of range"):
        Camera("radial", SIZE, 50, 50, 31, float("nan"), (0.1,))
