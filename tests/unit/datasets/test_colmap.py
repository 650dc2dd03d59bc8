"""A reconstruction as a data set: points at the pixels of undistorted images."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.records import Notes
from modality_forcing.datasets.colmap import DATASET
from tests import layouts


def reconstruction(
    root: Path, camera: str, points: dict[int, tuple[float, float, float]], seen: str
) -> None:
    """Writes a model with one image at the origin; another image is not on disk."""
    layouts.text(root / "sparse/0/cameras.txt", f"1 {camera}\n")
    layouts.text(
        root / "sparse/0/images.txt",
        f"1 1 0 0 0 0 0 0 1 a.png\n{seen}\n2 1 0 0 0 0 0 0 1 b.png\n1 1 1\n",
    )
    lines = [f"{number} {x} {y} {z} 0 0 0 0.1 1 0\n" for number, (x, y, z) in points.items()]
    layouts.text(root / "sparse/0/points3D.txt", "".join(lines))


def test_points_of_a_pinhole_camera(tmp_path: Path):
    image = layouts.image(tmp_path / "images/a.png", 40, 60)
    # In COLMAP's pixels (x + 0.5): 1 at (40, 25), 2 behind it, 3 misplaced, 4 unseen.
    points = {
        1: (0.4, 0.2, 2.0),
        2: (1.0, 0.5, 5.0),
        3: (0.0, 0.0, 3.0),
        4: (-0.4, 0.2, 2.0),
        5: (-1.0, 0.3, 4.0),
    }
    seen = "40.5 25.5 1 40.4 25.5 2 38.0 20.5 3 17.5 24.25 5"
    reconstruction(tmp_path, "PINHOLE 60 40 50 50 30.5 20.5", points, seen)
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "images/a"
    np.testing.assert_array_equal(record.image, image)
    expected = np.zeros((40, 60), np.float32)
    expected[25, 40], expected[24, 18] = 2, 4
    np.testing.assert_array_equal(record.depth, expected)
    np.testing.assert_array_equal(record.intrinsics, [[50, 0, 30], [0, 50, 20], [0, 0, 1]])
    source = DATASET.open(tmp_path, "train")
    assert len(source) == 1


def test_distorted_image_is_undistorted_with_its_points(tmp_path: Path):
    k = -0.25
    x, y = 0.25, -0.15
    bend = 1 + k * (x * x + y * y)
    u, v = 50 * x * bend + 29.5, 50 * y * bend + 19.5  # with the distortion of the lens
    rows, columns = np.mgrid[:40, :60]
    spot = 255 * np.exp(-((rows - v) ** 2 + (columns - u) ** 2) / 4)
    layouts.stored(
        tmp_path / "images/a.png", np.repeat(spot[..., None], 3, axis=2).astype(np.uint8)
    )
    reconstruction(
        tmp_path,
        f"SIMPLE_RADIAL 60 40 50 30 20 {k}",
        {1: (3 * x, 3 * y, 3)},
        f"{u + 0.5} {v + 0.5} 1",
    )
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.valid.sum() == 1 and record.depth[record.valid] == 3
    row, column = np.argwhere(record.valid)[0]
    # The record's intrinsics project a point to its bright pixel.
    at = record.intrinsics @ [x, y, 1]
    np.testing.assert_allclose([column, row], at[:2], atol=0.5)
    brightest = np.unravel_index(record.image[..., 0].argmax(), (40, 60))
    np.testing.assert_allclose(brightest, [row, column], atol=1)
    assert record.intrinsics[0, 0] != 50  # zoomed so that no pixel is beyond the image


def test_image_of_another_size_is_reported(tmp_path: Path):
    layouts.image(tmp_path / "images/a.png", 20, 30)
    reconstruction(tmp_path, "PINHOLE 60 40 50 50 30.5 20.5", {1: (0, 0, 2)}, "30.5 20.5 1")
    assert "a.png: is 30 x 20 pixels, but its camera 60 x 40" in layouts.refused(DATASET, tmp_path)


@pytest.mark.parametrize("seen", ["", "55 5 1"])
def test_image_without_points_is_reported(tmp_path: Path, seen: str):
    layouts.image(tmp_path / "images/a.png", 40, 60)
    reconstruction(tmp_path, "PINHOLE 60 40 50 50 30.5 20.5", {1: (0, 0, 2)}, seen)
    message = layouts.refused(DATASET, tmp_path)
    assert ("its depth has no valid pixel" if seen else "holds no frame") in message


def model_of(root: Path, names: list[str]) -> None:
    """Writes a model whose images saw one point each, but those called blind saw none."""
    layouts.text(root / "sparse/0/cameras.txt", "1 PINHOLE 60 40 50 50 30.5 20.5\n")
    layouts.text(root / "sparse/0/points3D.txt", "1 0 0 2 0 0 0 0.1 1 0\n")
    lines = (
        f"{i} 1 0 0 0 0 0 0 1 {name}\n{'' if 'blind' in name else '30.5 20.5 1'}\n"
        for i, name in enumerate(names)
    )
    layouts.text(root / "sparse/0/images.txt", "".join(lines))


def test_images_that_are_not_used_are_counted_and_named(tmp_path: Path):
    model_of(tmp_path, ["a.png", "blind.png", "gone.png", "room/b.png"])
    for name in ("a.png", "blind.png", "other.png", "room/b.png"):
        layouts.image(tmp_path / "images" / name, 40, 60)
    layouts.text(tmp_path / "images/notes.txt", "no image")
    source = DATASET.open(tmp_path, "train")
    assert isinstance(source, Notes)
    assert [record.id for record in map(source.__getitem__, range(2))] == [
        "images/a",
        "images/room/b",
    ]
    assert source.notes() == [
        f"{tmp_path}: 1 of 4 images of the model are not in images/ (gone.png)",
        f"{tmp_path}: 1 of 4 images of the model saw no point (images/blind.png)",
        f"{tmp_path}: 1 of 4 images are not in the model (images/other.png)",
    ]


@pytest.mark.parametrize(("model", "disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_compared_in_one_unicode_form(tmp_path: Path, model, disk):
    name = "caf\u00e9/\u00fc.png"
    model_of(tmp_path, [unicodedata.normalize(model, name)])
    layouts.image(tmp_path / "images" / unicodedata.normalize(disk, name), 40, 60)
    source = DATASET.open(tmp_path, "train")
    assert len(source) == 1 and source[0].valid[20, 30]
    assert isinstance(source, Notes) and source.notes() == []


def test_model_of_other_images_is_reported(tmp_path: Path):
    model_of(tmp_path, ["a.png", "b.png"])
    layouts.image(tmp_path / "images/c.png", 40, 60)
    message = layouts.refused(DATASET, tmp_path)
    assert f"holds none of the 2 images of the model in {tmp_path}/sparse/0" in message
    assert "put them there: a.png, b.png" in message


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
    (tmp_path / "images").mkdir()
    assert "holds no frame of COLMAP reconstruction; its layout is images/" in layouts.refused(
        DATASET, tmp_path
    )
