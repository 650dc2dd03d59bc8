"""Argoverse 2: scans in feather files, projected through the city frame into the nearest image."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.records import check
from modality_forcing.datasets.argoverse2 import DATASET
from modality_forcing.datasets.common.poses import (
    invert_pose,
    make_pose,
    rotation_from_quaternion,
    transform_points,
)
from modality_forcing.errors import UserError

pyarrow = pytest.importorskip("pyarrow")
feather = pytest.importorskip("pyarrow.feather")

SIZE = (80, 60)  # portrait, as the front camera
SWEEP, BEFORE, AFTER = 315973157959879000, 315973157927214000, 315973157977214000
K = (50.0, 50.0, 29.0, 41.0)
MOUNTED = (0.504763, -0.498327, 0.498575, -0.498305, 1.632, 0.007, 1.396)
POSES = {
    BEFORE: (0.98, 0.005, 0.003, 0.19, 1467.9, 211.2, 13.1),
    SWEEP: (0.986, 0.005, 0.003, 0.1666, 1468.87, 211.51, 13.137),
    AFTER: (0.986, 0.004, 0.003, 0.16, 1469.4, 211.7, 13.14),
}
PIXELS = np.array([[5.0, 60.0], [30.0, 50.0], [59.0, 79.0], [40.0, 45.0]])
DEPTH = np.array([5.0, 7.5, 30.0, 12.0])


def matrix(numbers: tuple[float, ...]) -> np.ndarray:
    return make_pose(rotation_from_quaternion(*numbers[:4]), np.array(numbers[4:]))


def read_csv(path: Path, **columns: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    feather.write_feather(pyarrow.table(columns), str(path), compression="zstd")


def camera(path: Path, name: str = "ring_front_center", size: tuple[int, int] = SIZE) -> None:
    names = ["stereo_front_left", name]
    columns = {
        key: [1.0, value]
        for key, value in zip(("fx_px", "fy_px", "cx_px", "cy_px"), K, strict=True)
    }
    lens = {"k1": [-0.24, -0.24], "k2": [-0.19, -0.19], "k3": [0.28, 0.28]}
    sides = {
        "height_px": np.array([1, size[0]], np.uint16),
        "width_px": np.array([1, size[1]], np.uint16),
    }
    read_csv(path / "intrinsics.feather", sensor_name=names, **columns, **lens, **sides)
    keys = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
    poses = {key: [0.1, value] for key, value in zip(keys, MOUNTED, strict=True)}
    read_csv(path / "egovehicle_SE3_sensor.feather", sensor_name=names, **poses)


def city(log: Path, poses: dict[int, tuple[float, ...]]) -> None:
    keys = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
    columns = {key: [pose[i] for pose in poses.values()] for i, key in enumerate(keys)}
    read_csv(
        log / "city_SE3_egovehicle.feather", timestamp_ns=np.array(list(poses), np.int64), **columns
    )


def write(root: Path, split: str = "train", taken: tuple[int, ...] = (BEFORE, AFTER)) -> Path:
    """A scan with points at DEPTH in PIXELS of the image taken AFTER it."""
    log = root / split / "adcf7d18-0510-35b0-a2fa-b4cea13a6d76"
    directions = (PIXELS - np.array(K[2:])) / np.array(K[:2])
    seen = np.concatenate([directions, np.ones((4, 1))], axis=1) * DEPTH[:, None]
    points = transform_points(
        transform_points(seen, matrix(POSES[AFTER]) @ matrix(MOUNTED)),
        invert_pose(matrix(POSES[SWEEP])),
    )
    # As stored; one is behind the camera.
    points = np.concatenate([points, [[np.inf, np.nan, 0], [-5, 0, 0]]]).astype(np.float16)
    more = {
        "intensity": np.zeros(6, np.uint8),
        "laser_number": np.zeros(6, np.uint8),
        "offset_ns": np.zeros(6, np.int32),
    }
    read_csv(
        log / f"sensors/lidar/{SWEEP}.feather",
        x=points[:, 0],
        y=points[:, 1],
        z=points[:, 2],
        **more,
    )
    for time in taken:
        path = log / f"sensors/cameras/ring_front_center/{time}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(path)
    camera(log / "calibration")
    city(log, POSES)
    return log


def test_points_are_transformed_through_the_city_frame_to_the_nearest_image(tmp_path: Path):
    log = write(tmp_path)
    source = DATASET.open(tmp_path, "train")
    assert len(source) == 1
    record = check(source[0])
    assert record.id == f"train/{log.name}/sensors/cameras/ring_front_center/{AFTER}"
    assert (record.unit, record.source, record.image.shape) == ("metric", "argoverse2", (*SIZE, 3))
    assert np.argwhere(record.valid).tolist() == sorted([int(y), int(x)] for x, y in PIXELS)
    found = [record.depth[int(y), int(x)] for x, y in PIXELS]
    np.testing.assert_allclose(found, DEPTH, rtol=2e-3)  # of f16
    np.testing.assert_allclose(record.intrinsics, [[50, 0, 29], [0, 50, 41], [0, 0, 1]])


def test_published_distortion_is_not_applied_to_undistorted_images(tmp_path: Path):
    write(tmp_path)
    # k1 of -0.24 would move the point in the corner by 11 pixels.
    assert DATASET.open(tmp_path, "train")[0].valid[79, 59]


@pytest.mark.parametrize(
    ("late", "frames"), [(25_000_000, 1), (25_000_001, 0), (-25_000_000, 1), (-30_000_000, 0)]
)
def test_images_too_far_in_time_from_a_scan_are_skipped(tmp_path: Path, late: int, frames: int):
    write(tmp_path, taken=(SWEEP + late,))
    if frames:
        assert len(DATASET.open(tmp_path, "train")) == frames
    else:
        with pytest.raises(UserError, match="holds no frame of Argoverse 2's train split"):
            DATASET.open(tmp_path, "train")


def test_splits_cameras_and_other_files(tmp_path: Path):
    log = write(tmp_path, "val")
    cameras = log / "sensors/cameras"
    (cameras / f"ring_front_center/._{AFTER}.jpg").write_bytes(b"\x00\x05\x16\x07")
    (log / f"sensors/lidar/._{SWEEP}.feather").write_bytes(b"\x00\x05\x16\x07")
    shutil.copy(
        cameras / f"ring_front_center/{AFTER}.jpg", cameras / "ring_front_center/preview.jpg"
    )
    shutil.copytree(cameras / "ring_front_center", cameras / "stereo_front_left")
    (cameras / "ring_rear_left").mkdir()
    assert len(DATASET.open(tmp_path, "val")) == 1
    with pytest.raises(
        UserError, match=r"holds no frame of Argoverse 2's train split; its layout is train/LOG"
    ):
        DATASET.open(tmp_path, "train")
    with pytest.raises(UserError, match="no such folder"):
        DATASET.open(tmp_path / "none", "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda log: (log / f"sensors/lidar/{SWEEP}.feather").write_bytes(b"ARROW1"),
            "cannot be read as a feather file",
        ),
        (
            lambda log: read_csv(log / f"sensors/lidar/{SWEEP}.feather", x=[1.0]),
            "cannot be read as a feather file",
        ),
        (
            lambda log: read_csv(log / f"sensors/lidar/{SWEEP}.feather", x=["a"], y=["b"], z=["c"]),
            "cannot be read as a feather",
        ),
        (
            lambda log: read_csv(
                log / f"sensors/lidar/{SWEEP}.feather", x=[-5.0], y=[0.0], z=[0.0]
            ),
            "its depth has no valid pixel",
        ),
        (
            lambda log: (log / "city_SE3_egovehicle.feather").unlink(),
            "city_SE3_egovehicle.feather: cannot be read",
        ),
        (
            lambda log: city(log, {SWEEP: POSES[SWEEP]}),
            f"city_SE3_egovehicle.feather: has no pose at {AFTER} ns",
        ),
        (lambda log: city(log, {**POSES, AFTER: (0.0,) * 7}), "holds an invalid pose"),
        (
            lambda log: camera(log / "calibration", "ring_side_left"),
            "intrinsics.feather: has 0 rows of ring_front_center",
        ),
        (
            lambda log: camera(log / "calibration", size=(60, 80)),
            "has images of 80 x 60 pixels, and this one 60 x 80",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, change, message: str):
    log = write(tmp_path)
    change(log)
    with pytest.raises(UserError, match=message) as caught:
        DATASET.open(tmp_path, "train")[0]
    assert "\n" not in str(caught.value)
