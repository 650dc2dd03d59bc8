"""Aria Synthetic Environments: fisheye ranges become depth of an upright pinhole camera."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.datasets.aria_synthetic import CAMERA, DATASET, PINHOLE
from modality_forcing.datasets.common.cameras import pixel_grid
from tests import layouts

SIZE = (704, 704)


def write(folder: Path, millimeters: np.ndarray, image: np.ndarray) -> None:
    layouts.stored(folder / "rgb/vignette0000012.jpg", image)
    layouts.stored(folder / "depth/depth0000012.png", millimeters)


def test_undistorted_wall_is_flat_and_upright(tmp_path: Path):
    directions = CAMERA.unproject(pixel_grid(SIZE).reshape(-1, 2)).reshape(*SIZE, 2)
    x, y = np.nan_to_num(directions[..., 0]), np.nan_to_num(directions[..., 1])
    # A wall, nearer on the right: z = 3 - x / 2, as range; a bright edge on the stored left.
    z = 3 / (1 + np.maximum(x, -1.5) / 2)
    millimeters = np.rint(1000 * z * np.sqrt(1 + x * x + y * y))
    millimeters[~np.isfinite(directions[..., 0])] = 0
    millimeters[350:354, 350:354] = 65535
    image = np.zeros((*SIZE, 3), np.uint8)
    image[:, :150] = 255
    write(tmp_path / "42", millimeters.astype(np.uint16), image)
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "42/rgb/vignette0000012" and record.depth.shape == SIZE
    assert record.image[0].mean() > 200 and record.image[-1].mean() < 50  # left is now up
    # After the clockwise rotation the stored x axis points down.
    rows, columns = np.nonzero(record.valid)
    down = (rows - record.intrinsics[1, 2]) / record.intrinsics[1, 1]
    expected = 3 / (1 + np.maximum(down, -1.5) / 2)
    ratio = record.depth[rows, columns] / expected
    assert np.abs(ratio - 1).max() < 0.008 and abs(np.median(ratio) - 1) < 1e-4
    assert 0.99 < record.valid.mean() < 1
    hole = ~record.valid
    assert 9 <= hole[330:375, 330:375].sum() <= 36  # 65535 means invalid


def test_corners_are_inside_the_lens():
    corners = PINHOLE.unproject(np.array([[0, 0], [703, 0], [0, 703], [703, 703]]))
    angles = np.arctan(np.hypot(*corners.T))
    assert angles.max() < 1.005  # radians, the range of the calibration
    pixels, ok = CAMERA.project(np.concatenate([corners, np.ones((4, 1))], axis=1))
    assert ok.all()
    # The image circle of the lens.
    assert np.hypot(*(pixels - [CAMERA.cx, CAMERA.cy]).T).max() < 1415 / 4 + 1


def test_another_size_has_another_camera(tmp_path: Path):
    write(tmp_path / "42", np.ones((8, 8), np.uint16), np.zeros((8, 8, 3), np.uint8))
    assert "is 8 x 8 pixels, but its camera 704 x 704" in layouts.refused(DATASET, tmp_path)


def test_image_without_depth_is_skipped(tmp_path: Path):
    layouts.image(tmp_path / "train/42/rgb/vignette0000001.jpg", 8, 8)
    assert "holds no frame of Aria" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
