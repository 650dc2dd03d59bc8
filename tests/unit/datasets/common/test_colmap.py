"""COLMAP models: text and binary hold the same, and damaged files are refused in one line."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.datasets.common.colmap import (
    Model3D,
    cameras_of_images,
    find_model,
    format_of,
    read_cameras,
    read_model,
)
from modality_forcing.errors import UserError
from tests import layouts

CAMERAS = """# Camera list with one line of data per camera:
#   CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]
# Number of cameras: 2
1 SIMPLE_RADIAL 60 40 50.0 30.0 20.0 -0.05
7 PINHOLE 60 40 50.0 51.0 30.5 20.5
"""
IMAGES = """# Image list with two lines of data per image:
#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME
#   POINTS2D[] as (X, Y, POINT3D_ID)
# Number of images: 3, mean observations per image: 2
2 0.7071067811865476 0 0.7071067811865476 0 0.5 -0.25 4 1 b c.jpg
30.5 20.5 11 1.0 2.0 -1 40.25 10.75 12
3 1 0 0 0 0 0 0 7 a/d.jpg

1 1 0 0 0 0 0 0 7 a.jpg
5.5 6.5 12
"""
POINTS = """# 3D point list with one line of data per point:
11 0.5 1.0 2.0 255 0 0 0.25 2 0
12 -1.0 0.5 6.0 0 255 0 0.5 2 2 1 0
"""


def text(folder: Path) -> Path:
    """Writes the model as text."""
    for name, content in (("cameras", CAMERAS), ("images", IMAGES), ("points3D", POINTS)):
        layouts.text(folder / f"{name}.txt", content)
    return folder


def binary(folder: Path) -> Path:
    """Writes the model as COLMAP's binary files, number by number."""
    cameras = struct.pack("<QiiQQ4d", 2, 1, 2, 60, 40, 50.0, 30.0, 20.0, -0.05)
    cameras += struct.pack("<iiQQ4d", 7, 1, 60, 40, 50.0, 51.0, 30.5, 20.5)
    half = 0.7071067811865476
    images = struct.pack("<Qi7di", 3, 2, half, 0, half, 0, 0.5, -0.25, 4, 1) + b"b c.jpg\0"
    images += struct.pack("<QddQddQddQ", 3, 30.5, 20.5, 11, 1, 2, 2**64 - 1, 40.25, 10.75, 12)
    images += struct.pack("<i7di", 3, 1, 0, 0, 0, 0, 0, 0, 7) + b"a/d.jpg\0" + struct.pack("<Q", 0)
    images += (
        struct.pack("<i7di", 1, 1, 0, 0, 0, 0, 0, 0, 7)
        + b"a.jpg\0"
        + struct.pack("<QddQ", 1, 5.5, 6.5, 12)
    )
    points = struct.pack("<QQ3d3BdQii", 2, 11, 0.5, 1.0, 2.0, 255, 0, 0, 0.25, 1, 2, 0)
    points += struct.pack("<Q3d3BdQiiii", 12, -1.0, 0.5, 6.0, 0, 255, 0, 0.5, 2, 2, 2, 1, 0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("cameras", cameras), ("images", images), ("points3D", points)):
        (folder / f"{name}.bin").write_bytes(content)
    return folder


@pytest.fixture(params=[text, binary])
def model(request, tmp_path: Path) -> Model3D:
    return read_model(request.param(tmp_path / "model"))


def test_principal_point_is_relative_to_the_center_of_the_first_pixel(model: Model3D):
    radial, straight = model.cameras[1], model.cameras[7]
    assert (radial.model, radial.size, radial.distortion) == ("radial", (40, 60), (-0.05,))
    np.testing.assert_array_equal(radial.matrix, [[50, 0, 29.5], [0, 50, 19.5], [0, 0, 1]])
    assert straight.model == "pinhole" and straight.is_pinhole
    np.testing.assert_array_equal(straight.matrix, [[50, 0, 30], [0, 51, 20], [0, 0, 1]])


def test_images_are_read_by_name_with_their_points(model: Model3D):
    assert [image.name for image in model.images] == ["a.jpg", "a/d.jpg", "b c.jpg"]
    one, none, two = model.images
    assert (one.points.tolist(), none.points.tolist(), two.points.tolist()) == ([12], [], [11, 12])
    np.testing.assert_array_equal(two.pixels, [[30, 20], [39.75, 10.25]])
    np.testing.assert_allclose(two.rotation, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-15)
    np.testing.assert_array_equal(two.translation, [0.5, -0.25, 4])
    np.testing.assert_array_equal(none.rotation, np.eye(3))


def test_names_of_a_binary_model_are_bytes_of_paths(tmp_path: Path):
    path = binary(tmp_path) / "images.bin"
    path.write_bytes(path.read_bytes().replace(b"a.jpg", b"\xe9.jpg"))
    assert os.fsencode(read_model(tmp_path).images[-1].name) == b"\xe9.jpg"


def test_points_are_transformed_to_camera_axes(model: Model3D):
    two = model.images[2]
    points, pixels, miss = model.depths(two)
    np.testing.assert_allclose(points, [[2.5, 0.75, 3.5], [6.5, 0.25, 5]], atol=1e-12)
    x, y = 2.5 / 3.5, 0.75 / 3.5
    bend = 1 - 0.05 * (x * x + y * y)
    np.testing.assert_allclose(pixels[0], [50 * x * bend + 29.5, 50 * y * bend + 19.5], rtol=1e-12)
    np.testing.assert_allclose(miss[0], np.hypot(pixels[0, 0] - 30, pixels[0, 1] - 20), rtol=1e-12)
    points, pixels, miss = model.depths(model.images[1])
    assert points.shape == (0, 3) and pixels.shape == (0, 2) and miss.shape == (0,)


def test_points_behind_the_camera_and_deleted_points_are_dropped(tmp_path: Path):
    folder = text(tmp_path)
    layouts.text(folder / "points3D.txt", "12 0 0 -6 0 0 0 0.5 2 2 1 0\n")
    model = read_model(folder)
    points, _, miss = model.depths(model.images[0])
    np.testing.assert_array_equal(points, [[0, 0, -6]])
    assert np.isinf(miss).all()
    assert len(model.depths(model.images[2])[0]) == 1


@pytest.mark.parametrize(
    ("line", "model", "distortion"),
    [
        ("1 SIMPLE_PINHOLE 60 40 50 30 20", "pinhole", ()),
        ("1 RADIAL 60 40 50 30 20 0.1 0.01", "radial", (0.1, 0.01)),
        ("1 OPENCV 60 40 50 51 30 20 0.1 0.2 0.3 0.4", "brown", (0.1, 0.2, 0.3, 0.4)),
        (
            "1 OPENCV_FISHEYE 60 40 50 51 30 20 0.1 0.2 0.3 0.4",
            "opencv_fisheye",
            (0.1, 0.2, 0.3, 0.4),
        ),
        (
            "1 THIN_PRISM_FISHEYE 60 40 50 51 30 20 1 2 3 4 5 6 7 8",
            "thin_prism_fisheye",
            (1, 2, 3, 4, 5, 6, 7, 8),
        ),
    ],
)
def test_every_camera_model_is_read(tmp_path: Path, line: str, model: str, distortion: tuple):
    camera = read_cameras(layouts.text(tmp_path / "cameras.txt", line + "\n"))[1]
    assert (camera.model, camera.distortion, camera.cx, camera.cy) == (
        model,
        distortion,
        29.5,
        19.5,
    )
    assert (camera.fx, camera.fy) == (50, 51 if len(line.split()) > 9 else 50)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 FOV 60 40 50 51 30 20 0.1", "camera model FOV is not known here"),
        (
            "1 FULL_OPENCV 60 40 50 51 30 20 1 2 3 4 5 6 7 8",
            "camera model FULL_OPENCV is not known here",
        ),
        ("1 PINHOLE 60 40 50 51 30", "a PINHOLE camera has 3 numbers, not 4"),
        ("1 PINHOLE 60 40 0 51 30 20", "cannot be read as COLMAP's cameras"),
        ("one PINHOLE 60 40 50 51 30 20", "cannot be read as COLMAP's cameras"),
        ("1 PINHOLE", "cannot be read as COLMAP's cameras"),
    ],
)
def test_invalid_camera_is_reported(tmp_path: Path, line: str, message: str):
    with pytest.raises(UserError, match=f"cameras.txt: {message}"):
        read_cameras(layouts.text(tmp_path / "cameras.txt", line + "\n"))


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("kind", ["txt", "bin"])
@pytest.mark.parametrize(
    "damage", [b"\xff\x05\x16\x07" * 1024, b"1 2 x y z 3 4 5 6 7 8 9\n1 2\n", "cut"]
)
def test_damaged_file_is_one_line(tmp_path: Path, name: str, kind: str, damage):
    folder = text(tmp_path) if kind == "txt" else binary(tmp_path)
    path = folder / f"{name}.{kind}"
    if damage == "cut" and kind == "txt":
        pytest.skip("text cut at the end of a number is text")
    path.write_bytes(path.read_bytes()[:-5] if damage == "cut" else damage)
    with pytest.raises(UserError) as caught:
        read_model(folder)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_image_of_a_missing_camera_is_reported(tmp_path: Path):
    folder = text(tmp_path)
    layouts.text(folder / "cameras.txt", CAMERAS.replace("7 PINHOLE", "8 PINHOLE"))
    with pytest.raises(
        UserError, match=r"cameras.txt: image a.jpg has camera 7, which is not there"
    ):
        read_model(folder)
    with pytest.raises(UserError, match=r"images.txt: cannot be read as COLMAP's images"):
        cameras_of_images(folder)


def test_cameras_are_read_by_image_without_points(tmp_path: Path):
    folder = text(tmp_path)
    (folder / "points3D.txt").unlink()
    assert {name: camera.model for name, camera in cameras_of_images(folder).items()} == {
        "a.jpg": "pinhole",
        "a/d.jpg": "pinhole",
        "b c.jpg": "radial",
    }


@pytest.mark.parametrize("place", ["sparse/0", "sparse", "dense/sparse", ".", "ground_truth"])
def test_model_is_found_in_its_usual_folders(tmp_path: Path, place: str):
    (tmp_path / "a/sparse").mkdir(parents=True)
    text(tmp_path / place)
    assert find_model(tmp_path) == tmp_path / place


def test_incomplete_model_is_refused(tmp_path: Path):
    folder = text(tmp_path)
    assert format_of(folder) == "txt"
    (folder / "points3D.txt").unlink()
    assert format_of(folder) == "" and find_model(tmp_path) is None
    with pytest.raises(UserError, match="holds no model"):
        read_model(folder)
    binary(folder)
    assert format_of(folder) == "bin"
