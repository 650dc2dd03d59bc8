"""TartanAir: packed floats, arrays, and sky at a large finite depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.datasets.tartanair import DATASET
from tests import layouts


def far_and_near(height: int, width: int) -> np.ndarray:
    depth = layouts.RNG.uniform(0.2, 400, (height, width)).astype(np.float32)
    depth[0] = 1000, 2572, 65504, 3e38, np.inf, 999.9
    return depth


def test_second_version_stores_packed_floats(tmp_path: Path):
    flight = tmp_path / "AbandonedCable/Data_easy/P000"
    depth = far_and_near(6, 6)
    image = layouts.image(flight / "image_lcam_front/000000_lcam_front.png", 6, 6)
    layouts.packed(flight / "depth_lcam_front/000000_lcam_front_depth.png", depth)
    for camera in ("lcam_bottom", "lcam_fish"):  # not pinhole cameras, or looking at the ground
        layouts.image(flight / f"image_{camera}/000000_{camera}.png", 6, 6)
        layouts.packed(flight / f"depth_{camera}/000000_{camera}_depth.png", depth)
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "AbandonedCable/Data_easy/P000/image_lcam_front/000000_lcam_front"
    np.testing.assert_array_equal(record.image, image)
    np.testing.assert_array_equal(record.depth, np.where(depth < 1000, depth, 0))
    assert record.valid[0].tolist() == [False] * 5 + [True]
    np.testing.assert_array_equal(record.intrinsics, [[3, 0, 2.5], [0, 3, 2.5], [0, 0, 1]])


def test_first_version_is_read_without_its_junk_files(tmp_path: Path):
    for camera in ("left", "right"):
        for number in ("000007", "000010"):
            layouts.image(tmp_path / f"P000/image_{camera}/{number}_{camera}.png", 3, 4)
            layouts.junk(tmp_path / f"P000/image_{camera}/._{number}_{camera}.png")
            layouts.junk(tmp_path / f"P000/depth_{camera}/._{number}_{camera}_depth.npy")
    depth = layouts.array(tmp_path / "P000/depth_left/000010_left_depth.npy", np.ones((3, 4)))
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "P000/image_left/000010_left"
    np.testing.assert_array_equal(record.depth, depth)
    np.testing.assert_array_equal(record.intrinsics, [[2, 0, 1.5], [0, 2, 1], [0, 0, 1]])
    assert len(layouts.records(DATASET, tmp_path / "P000")) == 1


@pytest.mark.parametrize("write", [layouts.junk, lambda path: layouts.image(path, 6, 6)])
def test_invalid_depth_file_is_reported(tmp_path: Path, write):
    layouts.image(tmp_path / "image_lcam_back/000000_lcam_back.png", 6, 6)
    write(tmp_path / "depth_lcam_back/000000_lcam_back_depth.png")
    assert "000000_lcam_back_depth.png: " in layouts.refused(DATASET, tmp_path)


def test_frame_of_sky_only_is_reported(tmp_path: Path):
    layouts.image(tmp_path / "image_left/0_left.png", 2, 2)
    layouts.array(tmp_path / "depth_left/0_left_depth.npy", np.full((2, 2), 1e4, np.float32))
    assert "its depth has no valid pixel" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
