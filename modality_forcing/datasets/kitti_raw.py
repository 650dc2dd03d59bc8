"""KITTI, single scans: images of a driving car and one scan of its rotating laser scanner each.

Layouts, recognized by what the root holds:
  raw: 2011_09_26/2011_09_26_drive_0001_sync/{image_02/data/NNNNNNNNNN.png,
    velodyne_points/data/NNNNNNNNNN.bin} with 2011_09_26/{calib_cam_to_cam.txt,
    calib_velo_to_cam.txt}; the drives of Eigen's test split of depth are the split `test`, all
    others `train`;
  object: training/{image_2, velodyne, calib}/NNNNNN.{png, bin, txt}, the split `train`. Its frames
    are from the same drives in another order, some of them from test drives.
Scans are little-endian f32 x y z reflectance, x ahead and z up. Depth is in meters along the axis
of the rectified left color camera: P_rect_02 R_rect_00 (R | T), or P2 R0_rect Tr_velo_to_cam. It is
sparse, with nothing in the upper third. Neither the duration of a scan (100 ms) nor moving objects
are compensated. Points that only the scanner sees are left out.
Frames without a scan are counted and left out. Calibrations differ between days, and so do the
sizes of images; the two must fit.
Source: cvlibs.net/datasets/kitti, the devkits' readmes; A. Geiger et al., IJRR 2013; D. Eigen et
al., NeurIPS 2014.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.data.resize import format_size
from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.common.formats import (
    UNPACK_AGAIN,
    read_lines,
    read_rgb,
    wrap_parse_errors,
    wrap_read_errors,
)
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.lidar import finite_points, project_points
from modality_forcing.datasets.common.poses import make_pose, transform_points
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError

_AGAIN = "take it from the download that the image is from"

# The test split of Eigen et al.: training must exclude these drives if it is evaluated on it.
TEST_DRIVES = frozenset(
    f"{date}_drive_{number}_sync"
    for date, numbers in {
        "2011_09_26": "0002 0009 0013 0020 0023 0027 0029 0036 0046 0048 0052 0056 0059 0064 "
        "0084 0086 0093 0096 0101 0106 0117",
        "2011_09_28": "0002",
        "2011_09_29": "0071",
        "2011_09_30": "0016 0018 0027",
        "2011_10_03": "0027 0047",
    }.items()
    for number in numbers.split()
)

# Focal length and principal point (x, y) of each day's rectified color cameras, by image (h, w).
DAYS = {
    (375, 1242): (721.5377, 609.5593, 172.8540),  # 2011_09_26
    (370, 1224): (707.0493, 604.0814, 180.5066),  # 2011_09_28
    (374, 1238): (718.3351, 600.3891, 181.5122),  # 2011_09_29
    (370, 1226): (707.0912, 601.8873, 183.1104),  # 2011_09_30
    (376, 1241): (718.8560, 607.1928, 185.2157),  # 2011_10_03
}


class _Frame(NamedTuple):
    image: Path
    scan: Path
    calibration: Path  # a file, or the folder of the two


class _Calibration(NamedTuple):
    projection: np.ndarray  # [3 4]
    pose: np.ndarray  # [4 4] of the scanner in the rectified first camera
    size: tuple[int, int] | None  # (h, w) of the images, if stated
    path: Path


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[_Frame]:
    for drive in glob_paths(root, "????_??_??/*_sync"):
        if (drive.name in TEST_DRIVES) == (split == "test"):
            images = glob_paths(drive, "image_02/data/*.png")
            scans = glob_paths(drive, "velodyne_points/data/*.bin")
            for image, scan in unused.match(images, scans):
                yield _Frame(image, scan, drive.parent)
    if split == "train":
        folder = root / "training"
        images, scans = glob_paths(folder, "image_2/*.png"), glob_paths(folder, "velodyne/*.bin")
        for image, scan in unused.match(images, scans):
            yield _Frame(image, scan, folder / "calib" / f"{image.stem}.txt")


def _read_frame(info: DatasetInfo, frame: _Frame, drop_occluded: bool = True) -> Record:
    image = read_rgb(frame.image)
    height, width = image.shape[:2]
    is_object = frame.calibration.suffix == ".txt"
    read = _object_calibration if is_object else _raw_calibration
    projection, pose, calibrated, path = read(frame.calibration)
    camera = check_camera(
        projection, (height, width), calibrated=calibrated, path=path, image=frame.image
    )
    # The last column of a projection is the position of the camera relative to the first one.
    offset = make_pose(np.eye(3), np.linalg.solve(projection[:, :3], projection[:, 3]))
    points = transform_points(read_scan(frame.scan), offset @ pose)
    depth, valid = project_points(points, camera, drop_occluded=drop_occluded)
    return make_record(info, frame.image, image, depth, valid=valid, intrinsics=camera.matrix)


def read_scan(path: Path) -> np.ndarray:
    """Returns the finite points f32 [n 3] of a scan."""
    with wrap_read_errors(path, "a scan"):
        stored = path.read_bytes()
    if not stored or len(stored) % 16:
        what = f"holds {len(stored)} bytes, not 16 for each point"
        raise UserError(what, where=path, hint=UNPACK_AGAIN)
    return finite_points(np.frombuffer(stored, "<f4").reshape(-1, 4)[:, :3].astype(np.float32))


def check_camera(
    projection: np.ndarray,
    size: tuple[int, int],
    *,
    calibrated: tuple[int, int] | None,
    path: Path,
    image: Path,
) -> Camera:
    """Returns the camera of a projection f64 [3 4 or 3 3] for images of (h, w) `size`.

    calibrated: the (h, w) stated by the calibration in `path`, or None. Then the camera of a known
    day is recognized by its numbers; of any other, the principal point must be near the middle.
    Raises UserError if the camera is not for images of this size.
    """
    focal, cx, cy = float(projection[0, 0]), float(projection[0, 2]), float(projection[1, 2])
    if calibrated is None:
        numbers = (focal, cx, cy)
        days = (size for size, day in DAYS.items() if np.allclose(day, numbers, atol=1e-3))
        calibrated = next(days, None)
    if calibrated is None and abs(cx / size[1] - 0.5) < 0.1 and abs(cy / size[0] - 0.5) < 0.1:
        calibrated = size
    if calibrated != size:
        whose = f"images of {format_size(calibrated)} pixels" if calibrated else "other images"
        what = f"is of {whose}, but {image.name} has {format_size(size)}"
        raise UserError(what, where=path, hint=_AGAIN)
    with wrap_parse_errors(path, "holds no camera", _AGAIN):
        return Camera("pinhole", size, focal, float(projection[1, 1]), cx, cy)


@dataclass(frozen=True)
class CalibrationFile:
    """A calibration file: lines of a name, a colon, and numbers."""

    path: Path
    lines: dict[str, str]

    def numbers(self, key: str, count: int) -> np.ndarray:
        """Returns the f64 [count] of a name. Raises UserError for any other count."""
        try:
            numbers = np.array(self.lines[key].split(), np.float64)
        except (KeyError, ValueError):
            numbers = np.zeros(0)
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise UserError(f"holds no {key} of {count} numbers", where=self.path, hint=_AGAIN)
        return numbers

    def projection(self, camera: str) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns P_rect f64 [3 4] and the (h, w) of a camera of a day, "02" or "03"."""
        width, height = self.numbers(f"S_rect_{camera}", 2)
        return self.numbers(f"P_rect_{camera}", 12).reshape(3, 4), (int(height), int(width))

    def rotation(self, key: str) -> np.ndarray:
        """Returns the pose f64 [4 4] of a rotation [3 3]."""
        return make_pose(self.numbers(key, 9).reshape(3, 3), np.zeros(3))


def read_calibration(path: Path) -> CalibrationFile:
    """Returns a calibration file."""
    pairs = (line.partition(":") for line in read_lines(path))
    return CalibrationFile(path, {key.strip(): value for key, _, value in pairs})


def _raw_calibration(folder: Path) -> _Calibration:
    cameras = read_calibration(folder / "calib_cam_to_cam.txt")
    scanner = read_calibration(folder / "calib_velo_to_cam.txt")
    projection, size = cameras.projection("02")
    pose = make_pose(scanner.numbers("R", 9).reshape(3, 3), scanner.numbers("T", 3))
    return _Calibration(projection, cameras.rotation("R_rect_00") @ pose, size, cameras.path)


def _object_calibration(path: Path) -> _Calibration:
    """Returns the calibration of a frame of the object benchmark, which states no size."""
    frame = read_calibration(path)
    projection = frame.numbers("P2", 12).reshape(3, 4)
    pose = frame.numbers("Tr_velo_to_cam", 12).reshape(3, 4)
    pose = frame.rotation("R0_rect") @ make_pose(pose[:, :3], pose[:, 3])
    return _Calibration(projection, pose, None, path)


DATASET = FrameDataset(
    name="kitti_raw",
    title="KITTI",
    splits=("train", "test"),
    license="CC BY-NC-SA 3.0",
    layout="2011_09_26/2011_09_26_drive_0001_sync/{image_02,velodyne_points}/data, "
    "or training/{image_2,velodyne,calib}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
