"""KITTI, single scans: pictures of a driving car and what its rotating laser scanner measured just then.

Layouts, told apart by what lies in the folder given:
  raw:    2011_09_26/2011_09_26_drive_0001_sync/{image_02/data/NNNNNNNNNN.png, velodyne_points/data/NNNNNNNNNN.bin} with
          2011_09_26/{calib_cam_to_cam.txt, calib_velo_to_cam.txt}; the drives that Eigen's test split of depth is from are
          the split `test`, all others `train`;
  object: training/{image_2, velodyne, calib}/NNNNNN.{png, bin, txt}, the split `train`. Its frames are of the same drives in
          an order of their own, some of them of test drives.
Scans are little-endian f32 x y z reflectance, x ahead and z up. Depth is metres along the axis of the rectified left colour
camera: P_rect_02 R_rect_00 (R | T), or P2 R0_rect Tr_velo_to_cam. It is sparse, with nothing in the upper third, and neither
the scan's own duration (100 ms) nor what moves is compensated. Points that only the scanner sees are left out.
Frames without a scan are passed over. Calibrations differ from day to day, and so do sizes of pictures; the two must fit.
Source: cvlibs.net/datasets/kitti, the devkits' readmes; A. Geiger et al., IJRR 2013; D. Eigen et al., NeurIPS 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.common.formats import read_rgb, read_text, wrap_read_errors
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    parts_below,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.common.lidar import (
    finite_points,
    make_pose,
    project_points,
    transform_points,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "KITTI"
_LAYOUT = "2011_09_26/2011_09_26_drive_0001_sync/{image_02,velodyne_points}/data, or training/{image_2,velodyne,calib}"
_AGAIN = "take it from the download that the picture is from"

# The test split of Eigen et al.: what evaluates on it must not have trained on its drives.
TEST_DRIVES = frozenset(
    f"{date}_drive_{number}_sync"
    for date, numbers in {
        "2011_09_26": "0002 0009 0013 0020 0023 0027 0029 0036 0046 0048 0052 0056 0059 0064 0084 0086 0093 0096 0101 0106 0117",
        "2011_09_28": "0002",
        "2011_09_29": "0071",
        "2011_09_30": "0016 0018 0027",
        "2011_10_03": "0027 0047",
    }.items()
    for number in numbers.split()
)

# Focal length, x and y of the axis of each day's rectified colour cameras, by the (h, w) of its pictures.
DAYS = {
    (375, 1242): (721.5377, 609.5593, 172.8540),  # 2011_09_26
    (370, 1224): (707.0493, 604.0814, 180.5066),  # 2011_09_28
    (374, 1238): (718.3351, 600.3891, 181.5122),  # 2011_09_29
    (370, 1226): (707.0912, 601.8873, 183.1104),  # 2011_09_30
    (376, 1241): (718.8560, 607.1928, 185.2157),  # 2011_10_03
}


@dataclass(frozen=True)
class _Frame:
    image: Path
    scan: Path
    calibration: Path  # a file, or the folder of the two


def _open(root: Path, split: str) -> LazySource[_Frame]:
    root = require_dir(root, _TITLE)
    frames = [*_raw(root, split), *(_objects(root) if split == "train" else [])]
    return LazySource(
        require_nonempty(frames, root, f"{_TITLE}'s split {split}", _LAYOUT),
        partial(_read, DatasetInfo("kitti_raw", "metric", root)),
    )


def _raw(root: Path, split: str) -> list[_Frame]:
    frames = []
    for drive in glob_paths(root, "????_??_??/*_sync"):
        if (drive.name in TEST_DRIVES) != (split == "test"):
            continue
        scans = {path.stem: path for path in glob_paths(drive, "velodyne_points/data/*.bin")}
        pictures = glob_paths(drive, "image_02/data/*.png")
        frames += [
            _Frame(path, scans[path.stem], drive.parent) for path in pictures if path.stem in scans
        ]
    return frames


def _objects(root: Path) -> list[_Frame]:
    folder = root / "training"
    scans = {path.stem: path for path in glob_paths(folder, "velodyne/*.bin")}
    pictures = glob_paths(folder, "image_2/*.png")
    return [
        _Frame(path, scans[path.stem], folder / "calib" / f"{path.stem}.txt")
        for path in pictures
        if path.stem in scans
    ]


def _read(info: DatasetInfo, frame: _Frame, drop_occluded: bool = True) -> Record:
    image = read_rgb(frame.image)
    raw = "image_02" in parts_below(frame.image, info.root)
    projection, pose, size, path = (_raw_calibration if raw else _object_calibration)(
        frame.calibration
    )
    camera = check_camera(projection, size, image.shape[:2], path, frame.image)
    # What the last column of a projection says is where the camera stands beside the first one.
    beside = make_pose(np.eye(3), np.linalg.solve(projection[:, :3], projection[:, 3]))
    points = transform_points(read_scan(frame.scan), beside @ pose)
    depth, valid = project_points(points, camera, drop_occluded=drop_occluded)
    return make_record(info, frame.image, image, depth, valid, camera.matrix)


def read_scan(path: Path) -> np.ndarray:
    """Returns the points f32 [n 3] of a scan, without those that are not finite; raises UserError for a damaged file."""
    with wrap_read_errors(path, "a scan"):
        stored = path.read_bytes()
    if not stored or len(stored) % 16:
        raise UserError(
            f"holds {len(stored)} bytes, not 16 for each point",
            where=path,
            hint="unpack or download it again",
        )
    return finite_points(np.frombuffer(stored, "<f4").reshape(-1, 4)[:, :3].astype(np.float32))


def check_camera(
    projection: np.ndarray,
    calibrated: tuple[int, int] | None,
    size: tuple[int, int],
    path: Path,
    picture: Path,
) -> Camera:
    """Returns the camera of a projection f64 [3 4 or 3 3] for pictures of (h, w) `size`.

    calibrated: the (h, w) that the calibration of `path` says it is for, None if it does not. Then one of a known day
    tells it by its focal length, and of any other the axis must go through somewhere near the middle.
    Raises UserError if it is not for pictures of this size.
    """
    focal, cx, cy = float(projection[0, 0]), float(projection[0, 2]), float(projection[1, 2])
    if calibrated is None:
        calibrated = next(
            (other for other, day in DAYS.items() if np.allclose(day, (focal, cx, cy), atol=1e-3)),
            None,
        )
    if calibrated is None and abs(cx / size[1] - 0.5) < 0.1 and abs(cy / size[0] - 0.5) < 0.1:
        calibrated = size
    if calibrated != size:
        whose = (
            f"is of pictures of {calibrated[1]} x {calibrated[0]} pixels"
            if calibrated
            else "is of other pictures"
        )
        raise UserError(
            f"{whose}, but {picture.name} has {size[1]} x {size[0]}", where=path, hint=_AGAIN
        )
    try:
        return Camera("pinhole", size, focal, float(projection[1, 1]), cx, cy)
    except ValueError as error:
        raise UserError("holds no camera", where=path, hint=_AGAIN) from error


@dataclass(frozen=True)
class Calibration:
    """A calibration file: a line each of a name, a colon, and numbers."""

    path: Path
    lines: dict[str, str]

    def numbers(self, key: str, count: int) -> np.ndarray:
        """Returns the f64 [count] of a name; raises UserError if there are not as many."""
        try:
            numbers = np.array(self.lines[key].split(), np.float64)
        except (KeyError, ValueError):
            numbers = np.zeros(0)
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise UserError(f"holds no {key} of {count} numbers", where=self.path, hint=_AGAIN)
        return numbers

    def projection(self, camera: str) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns P_rect f64 [3 4] and the (h, w) of a camera, 02 or 03, of a day."""
        width, height = self.numbers(f"S_rect_{camera}", 2)
        return self.numbers(f"P_rect_{camera}", 12).reshape(3, 4), (int(height), int(width))


def read_calibration(path: Path) -> Calibration:
    """Returns a calibration file; raises UserError if it cannot be read."""
    pairs = (line.partition(":") for line in read_text(path, "a calibration").splitlines())
    return Calibration(path, {key.strip(): value for key, _, value in pairs})


def _raw_calibration(folder: Path) -> tuple[np.ndarray, np.ndarray, tuple[int, int], Path]:
    """Projection [3 4], pose [4 4] of the scanner in the rectified first camera, size of pictures, and file of a day."""
    cameras, scanner = (
        read_calibration(folder / f"calib_{what}_to_cam.txt") for what in ("cam", "velo")
    )
    projection, size = cameras.projection("02")
    rectified = make_pose(cameras.numbers("R_rect_00", 9).reshape(3, 3), np.zeros(3))
    pose = make_pose(scanner.numbers("R", 9).reshape(3, 3), scanner.numbers("T", 3))
    return projection, rectified @ pose, size, cameras.path


def _object_calibration(path: Path) -> tuple[np.ndarray, np.ndarray, None, Path]:
    """The same of a frame of the object benchmark, whose calibration does not say a size."""
    frame = read_calibration(path)
    projection = frame.numbers("P2", 12).reshape(3, 4)
    rectified = make_pose(frame.numbers("R0_rect", 9).reshape(3, 3), np.zeros(3))
    pose = frame.numbers("Tr_velo_to_cam", 12).reshape(3, 4)
    return projection, rectified @ make_pose(pose[:, :3], pose[:, 3]), None, path


DATASET = Dataset("kitti_raw", _TITLE, "metric", ("train", "test"), "CC BY-NC-SA 3.0", _open)
