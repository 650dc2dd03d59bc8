"""Argoverse 2 Sensor: seven cameras around a car and the scans of two laser scanners above it.

Layout: {train, val}/LOG/ with
  sensors/cameras/ring_NAME/NANOSECONDS.jpg, 20 per second, 2048 x 1550 pixels, ring_front_center
    1550 x 2048;
  sensors/lidar/NANOSECONDS.feather, 10 per second, f16 x y z in the frame of the car at that time,
    the motion within the scan already compensated;
  calibration/intrinsics.feather (fx_px fy_px cx_px cy_px width_px height_px per sensor_name);
  calibration/egovehicle_SE3_sensor.feather (qw qx qy qz tx_m ty_m tz_m: the sensor's pose in the
    car);
  city_SE3_egovehicle.feather (the same of the car in the city, per timestamp_ns).
Each scan makes one frame per camera, with the image nearest in time, at most 25 ms away. Depth is
in meters along the axis: points go from the car at the time of the scan through the city to the car
at the time of the image. About 1% of the pixels have depth; points that only the scanner sees are
left out. f16 has steps of 3 cm from 32 m on and of 6 cm from 64 m on.
Images are distributed undistorted, so cameras are pinholes: the k1 to k3 beside their intrinsics
describe the original lens (argoverse/av2-api#219 and #226; their own projection does not use them).
The two stereo cameras are gray and not read.
Needs pyarrow. Source: argoverse/av2-api, src/av2/datasets/sensor/README.md,
src/av2/geometry/camera/pinhole_camera.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.data.resize import format_size
from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.common.formats import (
    UNPACK_AGAIN,
    read_rgb,
    wrap_parse_errors,
    wrap_read_errors,
)
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.lidar import finite_points, project_points, to_camera
from modality_forcing.datasets.common.poses import make_pose, rotation_from_quaternion
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError
from modality_forcing.paths import is_dir, is_file

_MAX_TIME_GAP = 25_000_000  # nanoseconds: half of the time between two images
_POSE = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
_CAMERA = ("fx_px", "fy_px", "cx_px", "cy_px", "width_px", "height_px")


class _Frame(NamedTuple):
    log: Path
    image: Path
    scan: Path


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[_Frame]:
    for log in glob_paths(root, f"{split}/*"):
        if not is_dir(log / "sensors"):
            continue
        scans = _timed(log, "sensors/lidar/*.feather")
        cameras = [_timed(camera, "*.jpg") for camera in glob_paths(log, "sensors/cameras/ring_*")]
        pairs = [pair for images in cameras for pair in _nearest(images, scans)]
        yield from (_Frame(log, image, scan) for image, scan in pairs)
        unused.add_partners([path for images in cameras for path in images], scans, pairs)


def _timed(folder: Path, pattern: str) -> list[Path]:
    """Returns the files below a folder whose names are times."""
    return [path for path in glob_paths(folder, pattern) if path.stem.isdecimal()]


def _nearest(images: list[Path], scans: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Yields each scan with the image of a camera nearest in time, if it is near enough."""
    times = np.array([int(path.stem) for path in images], np.int64)
    for scan in scans if images else []:
        gaps = np.abs(times - int(scan.stem))
        nearest = int(np.argmin(gaps))
        if gaps[nearest] <= _MAX_TIME_GAP:
            yield images[nearest], scan


def _read_frame(info: DatasetInfo, frame: _Frame, drop_occluded: bool = True) -> Record:
    image = read_rgb(frame.image)
    name = frame.image.parent.name
    camera, extrinsics = read_camera(frame.log, name, image.shape[:2])
    poses = frame.log / "city_SE3_egovehicle.feather"
    scan_pose, image_pose = (_pose_at(poses, int(path.stem)) for path in (frame.scan, frame.image))
    points = to_camera(read_scan(frame.scan), scan_pose, image_pose, extrinsics)
    depth, valid = project_points(points, camera, drop_occluded=drop_occluded)
    return make_record(info, frame.image, image, depth, valid=valid, intrinsics=camera.matrix)


def read_scan(path: Path) -> np.ndarray:
    """Returns the points f32 [n 3] of a scan in the car's frame."""
    columns = _read_columns(path, ("x", "y", "z"))
    return finite_points(np.stack([column.astype(np.float32) for column in columns], axis=1))


def read_camera(
    log: Path, name: str, size: tuple[int, ...] | None = None
) -> tuple[Camera, np.ndarray]:
    """Returns the camera of that name and its pose f64 [4 4] in the car.

    size: the (h, w) of the image, None for that of the calibration.
    Raises UserError if the log's calibration has no such camera or one of another size.
    """
    path = log / "calibration/intrinsics.feather"
    fx, fy, cx, cy, width, height = _row(path, name, _CAMERA)
    calibrated = int(height), int(width)
    if size not in (None, calibrated):
        sizes = f"{format_size(calibrated)} pixels, and this one {format_size(size)}"
        hint = "calibration and image must be of the same log"
        raise UserError(f"{name} has images of {sizes}", where=path, hint=hint)
    with wrap_parse_errors(path, f"holds no pinhole camera {name}"):
        camera = Camera("pinhole", calibrated, fx, fy, cx, cy)
    path = log / "calibration/egovehicle_SE3_sensor.feather"
    return camera, _to_pose(path, _row(path, name, _POSE))


def _row(path: Path, name: str, columns: tuple[str, ...]) -> list[float]:
    names, *values = _cached_columns(path, ("sensor_name", *columns))
    rows = np.flatnonzero(names == name)
    if len(rows) != 1:
        what = f"has {len(rows)} rows of {name}, not one"
        raise UserError(what, where=path, hint=UNPACK_AGAIN)
    return [float(column[rows[0]]) for column in values]


def _pose_at(path: Path, nanoseconds: int) -> np.ndarray:
    """Returns the car's pose in the city. Every time of a measurement has a row of its own."""
    times, *values = _cached_columns(path, ("timestamp_ns", *_POSE))
    rows = np.flatnonzero(times == nanoseconds)
    if not len(rows):
        hint = "it must be of the same log as the scan and image"
        raise UserError(f"has no pose at {nanoseconds} ns", where=path, hint=hint)
    return _to_pose(path, [float(column[rows[0]]) for column in values])


def _to_pose(path: Path, numbers: list[float]) -> np.ndarray:
    with wrap_parse_errors(path, "holds an invalid pose"):
        return make_pose(rotation_from_quaternion(*numbers[:4]), np.array(numbers[4:]))


def _cached_columns(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """Returns columns of a file that every frame of a log reads."""
    return _read_columns_of(path, names, path.stat().st_mtime_ns if is_file(path) else 0)


@lru_cache(16)
def _read_columns_of(path: Path, names: tuple[str, ...], mtime: int) -> list[np.ndarray]:
    return _read_columns(path, names)


def _read_columns(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    import pyarrow.feather

    with wrap_read_errors(path, "a feather file"):
        table = pyarrow.feather.read_table(str(path), columns=list(names), memory_map=False)
        columns = {name: table.column(name).to_numpy() for name in names}
        for name, column in columns.items():
            if column.dtype.kind not in "fiu" and name != "sensor_name":
                raise ValueError("a column of numbers holds something else")
        return list(columns.values())


DATASET = FrameDataset(
    name="argoverse2",
    title="Argoverse 2",
    splits=("train", "val"),
    license="CC BY-NC-SA 4.0",
    layout="SPLIT/LOG/{sensors/cameras/ring_*/*.jpg, sensors/lidar/*.feather, calibration, "
    "city_SE3_egovehicle.feather}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
