"""Argoverse 2, sensor data set: seven cameras around a car and the sweeps of two laser scanners above it.

Layout: {train, val}/LOG/ with
  sensors/cameras/ring_NAME/NANOSECONDS.jpg, 20 a second, 2048 x 1550 pixels, ring_front_center 1550 x 2048;
  sensors/lidar/NANOSECONDS.feather, 10 a second, f16 x y z in the frame of the car at that time, its motion within the
    sweep taken out already;
  calibration/intrinsics.feather (fx_px fy_px cx_px cy_px width_px height_px of each sensor_name),
  calibration/egovehicle_SE3_sensor.feather (qw qx qy qz tx_m ty_m tz_m: the sensor's pose in the car),
  city_SE3_egovehicle.feather (the same of the car in the city, at each timestamp_ns).
Of each sweep and camera there is one frame, the picture nearest in time, if within 25 ms. Depth is metres along the axis:
points go from the car at the sweep's time through the city to the car at the picture's. About 1% of the pixels have any;
points that only the scanner sees are left out. f16 has steps of 3 cm from 32 m on and of 6 from 64 m on.
Pictures are distributed undistorted, so cameras are pinholes: k1 to k3 beside their intrinsics tell what the lens once did
(argoverse/av2-api#219 and #226; their own projection does not use them). The two stereo cameras are grey and not read.
Needs pyarrow. Source: argoverse/av2-api, src/av2/datasets/sensor/README.md, src/av2/geometry/camera/pinhole_camera.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.common.formats import read_rgb, wrap_read_errors
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.common.lidar import (
    finite_points,
    make_pose,
    project_points,
    rotation_from_quaternion,
    to_camera,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "Argoverse 2"
_LAYOUT = "{train,val}/LOG/{sensors/cameras/ring_*/*.jpg, sensors/lidar/*.feather, calibration, city_SE3_egovehicle.feather}"
_AGAIN = "unpack or download it again"
_MAX_TIME_GAP = 25_000_000  # nanoseconds: half of the time between two pictures
_POSE = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
_CAMERA = ("fx_px", "fy_px", "cx_px", "cy_px", "width_px", "height_px")


@dataclass(frozen=True)
class _Frame:
    log: Path
    image: Path
    sweep: Path


def _open(root: Path, split: str) -> LazySource[_Frame]:
    root = require_dir(root, _TITLE)
    logs = [path for path in glob_paths(root, f"{split}/*") if (path / "sensors").is_dir()]
    kept = require_nonempty(
        (frame for log in logs for frame in _frames(log)),
        root,
        f"{_TITLE}'s split {split}",
        _LAYOUT,
    )
    return LazySource(kept, partial(_read, DatasetInfo("argoverse2", "metric", root)))


def _frames(log: Path) -> Iterator[_Frame]:
    sweeps = [path for path in glob_paths(log, "sensors/lidar/*.feather") if path.stem.isdecimal()]
    for camera in glob_paths(log, "sensors/cameras/ring_*"):
        pictures = [path for path in glob_paths(camera, "*.jpg") if path.stem.isdecimal()]
        if not pictures:
            continue
        times = np.array([int(path.stem) for path in pictures], np.int64)
        for sweep in sweeps:
            apart = np.abs(times - int(sweep.stem))
            nearest = int(np.argmin(apart))
            if apart[nearest] <= _MAX_TIME_GAP:
                yield _Frame(log, pictures[nearest], sweep)


def _read(info: DatasetInfo, frame: _Frame, drop_occluded: bool = True) -> Record:
    image = read_rgb(frame.image)
    name = frame.image.parent.name
    camera, extrinsics = read_camera(frame.log, name, image.shape[:2])
    poses = frame.log / "city_SE3_egovehicle.feather"
    scanned, taken = (_pose_at(poses, int(path.stem)) for path in (frame.sweep, frame.image))
    points = to_camera(read_sweep(frame.sweep), scanned, taken, extrinsics)
    depth, valid = project_points(points, camera, drop_occluded=drop_occluded)
    return make_record(info, frame.image, image, depth, valid, camera.matrix)


def read_sweep(path: Path) -> np.ndarray:
    """Returns the points f32 [n 3] of a sweep in the car's frame; raises UserError for a damaged file."""
    return finite_points(
        np.stack([column.astype(np.float32) for column in _columns(path, ("x", "y", "z"))], axis=1)
    )


def read_camera(
    log: Path, name: str, size: tuple[int, int] | None = None
) -> tuple[Camera, np.ndarray]:
    """Returns the camera of that name and its pose f64 [4 4] in the car.

    size: the (h, w) of the picture it is for, None for whatever the calibration says.
    Raises UserError if there is no such camera in the log's calibration or it is of another size.
    """
    path = log / "calibration/intrinsics.feather"
    fx, fy, cx, cy, width, height = _row(path, name, _CAMERA)
    if size not in (None, (int(height), int(width))):
        what = f"{name} has pictures of {int(width)} x {int(height)} pixels, and this one {size[1]} x {size[0]}"
        raise UserError(what, where=path, hint="calibration and picture must be of the same log")
    try:
        camera = Camera("pinhole", (int(height), int(width)), fx, fy, cx, cy)
    except ValueError as error:
        raise UserError(f"holds no pinhole camera {name}", where=path, hint=_AGAIN) from error
    path = log / "calibration/egovehicle_SE3_sensor.feather"
    return camera, _pose(path, _row(path, name, _POSE))


def _row(path: Path, name: str, columns: tuple[str, ...]) -> list[float]:
    names, *values = _kept(path, ("sensor_name", *columns))
    where = np.flatnonzero(names == name)
    if len(where) != 1:
        raise UserError(f"has {len(where)} rows of {name}, not one", where=path, hint=_AGAIN)
    return [float(column[where[0]]) for column in values]


def _pose_at(path: Path, nanoseconds: int) -> np.ndarray:
    """The car's pose in the city at a time at which a sensor measured: every such time has a row of its own."""
    times, *values = _kept(path, ("timestamp_ns", *_POSE))
    where = np.flatnonzero(times == nanoseconds)
    if not len(where):
        raise UserError(
            f"has no pose at {nanoseconds} ns",
            where=path,
            hint="it must be of the same log as the sweep and picture",
        )
    return _pose(path, [float(column[where[0]]) for column in values])


def _pose(path: Path, numbers: list[float]) -> np.ndarray:
    try:
        return make_pose(rotation_from_quaternion(*numbers[:4]), np.array(numbers[4:]))
    except ValueError as error:
        raise UserError("holds a pose that is none", where=path, hint=_AGAIN) from error


def _kept(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    """The columns of a file of a whole log, which every frame of it asks for."""
    return _remembered(path, names, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(16)
def _remembered(path: Path, names: tuple[str, ...], written: int) -> list[np.ndarray]:
    return _columns(path, names)


def _columns(path: Path, names: tuple[str, ...]) -> list[np.ndarray]:
    import pyarrow.feather

    with wrap_read_errors(path, "a feather file"):
        table = pyarrow.feather.read_table(str(path), columns=list(names), memory_map=False)
        columns = [table.column(name).to_numpy() for name in names]
        if not all(
            column.dtype.kind in "fiu" or name == "sensor_name"
            for name, column in zip(names, columns, strict=True)
        ):
            raise ValueError("a column of numbers holds something else")
        return columns


DATASET = Dataset("argoverse2", _TITLE, "metric", ("train", "val"), "CC BY-NC-SA 4.0", _open)
