"""Waymo Open Perception: five cameras and five laser scanners of a car, in TFRecord files.

Layout: {training, validation}/*.tfrecord, a file per drive of 20 s, ten Frame messages per second,
each with the cameras FRONT, FRONT_LEFT, FRONT_RIGHT (1920 x 1280 pixels), SIDE_LEFT and SIDE_RIGHT
(1920 x 886). This is version 1 of the format, with images and scans in one message; version 2, in
Parquet files, is not read.

Scans are range images. Only the first return of a cell is used. Its range, its direction (from the
inclination of its row and the azimuth of its column), the scanner's pose on the car and the car's
pose (that of the cell for the roof scanner, else that of the frame) give a point in the world. The
message also has the pixel at which each camera saw the point, computed with lens and rolling
shutter: depth is put there. It is in meters along the camera's axis, from the car's pose when the
image was taken; Waymo's cameras have x forward. The nearest point of a pixel is kept, and points
that only the scanner sees are left out.

Images keep the distortion of their lens. Intrinsics are those of the pinhole in the middle, off by
up to 2% of the radius in the corners. Since this data set counts pixels from their corner, half a
pixel is subtracted from the principal point (inferred for intrinsics, stated for projections).
Source: waymo-research/waymo-open-dataset, dataset.proto, utils/{frame_utils, range_image_utils,
transform_utils}.py.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from modality_forcing.data.files import exif_orientation, refuse_orientation
from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.records import Record
from modality_forcing.data.resize import format_size
from modality_forcing.datasets.common.formats import UNPACK_AGAIN, wrap_read_errors
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.lidar import MIN_DEPTH, rasterize_points
from modality_forcing.datasets.common.poses import invert_pose, make_pose, transform_points
from modality_forcing.datasets.common.tfrecord import index_records, read_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError
from modality_forcing.storage.proto_schema import MessageClass, define_messages, parse

CAMERAS = {1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT"}

_ROOF = 1  # the scanner whose cells have poses of their own
# The fields used here of dataset.proto and label.proto; enumerations are read as their numbers.
_MESSAGES = define_messages("""
message Transform { repeated double transform = 1; }
message MatrixShape { repeated int32 dims = 1; }
message MatrixFloat {
  repeated float data = 1 [packed = true];
  optional MatrixShape shape = 2;
}
message MatrixInt32 {
  repeated int32 data = 1 [packed = true];
  optional MatrixShape shape = 2;
}
message CameraCalibration {
  optional int32 name = 1;
  repeated double intrinsic = 2;
  optional Transform extrinsic = 3;
  optional int32 width = 4;
  optional int32 height = 5;
}
message LaserCalibration {
  optional int32 name = 1;
  repeated double beam_inclinations = 2;
  optional double beam_inclination_min = 3;
  optional double beam_inclination_max = 4;
  optional Transform extrinsic = 5;
}
message Context {
  repeated CameraCalibration camera_calibrations = 2;
  repeated LaserCalibration laser_calibrations = 3;
}
message CameraImage {
  optional int32 name = 1;
  optional bytes image = 2;
  optional Transform pose = 3;
}
message RangeImage {
  optional bytes range_image_compressed = 2;
  optional bytes camera_projection_compressed = 3;
  optional bytes range_image_pose_compressed = 4;
}
message Laser {
  optional int32 name = 1;
  optional RangeImage ri_return1 = 2;
}
message Frame {
  optional Context context = 1;
  optional Transform pose = 3;
  repeated CameraImage images = 4;
  repeated Laser lasers = 5;
}
""")


class _Frame(NamedTuple):
    file: Path
    number: int
    span: tuple[int, int]  # offset and length of the record
    camera: int


@dataclass(frozen=True, eq=False)
class _Decoded:
    points: np.ndarray  # f64 [n 3] in the world
    projections: np.ndarray  # i64 [n 6]: camera, x and y, twice
    pose: np.ndarray  # f64 [4 4] of the car
    images: dict[int, MessageClass]
    cameras: dict[int, MessageClass]  # their calibrations


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[_Frame]:
    for path in glob_paths(root, f"{split}/*.tfrecord"):
        for number, span in enumerate(index_records(path)):
            yield from (_Frame(path, number, span, camera) for camera in CAMERAS)


def _read_frame(info: DatasetInfo, frame: _Frame, drop_occluded: bool = True) -> Record:
    name = CAMERAS[frame.camera]
    with wrap_read_errors(frame.file, "frames of Waymo Open"):
        decoded = _decode(frame.file, frame.span)
        if frame.camera not in decoded.images or frame.camera not in decoded.cameras:
            what = f"frame {frame.number} has no image of {name}"
            raise UserError(what, where=frame.file, hint="leave the frame out")
        taken, calibration = decoded.images[frame.camera], decoded.cameras[frame.camera]
        with Image.open(io.BytesIO(taken.image)) as opened:
            refuse_orientation(exif_orientation(opened), f"{frame.file}:{name}")
            image = np.array(opened.convert("RGB"))
        size = (calibration.height, calibration.width)
        if image.shape[:2] != size:
            sizes = f"{format_size(image.shape)} pixels, its camera {format_size(size)}"
            what = f"image of {name} in frame {frame.number} is {sizes}"
            raise UserError(what, where=frame.file, hint=UNPACK_AGAIN)
        fx, fy, cx, cy = calibration.intrinsic[:4]
        car = _pose(taken.pose) if taken.HasField("pose") else decoded.pose
        camera = car @ _pose(calibration.extrinsic)
    z = transform_points(decoded.points, invert_pose(camera))[:, 0]
    pixels, which = _seen_by(decoded.projections, frame.camera)
    ahead = z[which] >= MIN_DEPTH
    depth, valid = rasterize_points(
        pixels[ahead], z[which][ahead], size, drop_occluded=drop_occluded
    )
    # A path that does not exist: file, number and camera identify a frame.
    path = frame.file.with_suffix("") / f"{frame.number:03d}" / f"{name}.jpg"
    intrinsics = pinhole(fx, fy, cx - 0.5, cy - 0.5)
    return make_record(info, path, image, depth, valid=valid, intrinsics=intrinsics)


def _seen_by(projections: np.ndarray, camera: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pixels i64 [k 2] of the points a camera sees, and their indices i64 [k].

    Two cameras may see one point.
    """
    first, second = (np.flatnonzero(projections[:, column] == camera) for column in (0, 3))
    pixels = np.concatenate([projections[first, 1:3], projections[second, 4:6]])
    return pixels, np.concatenate([first, second])


@lru_cache(maxsize=1)  # the cameras of a frame are read in turn
def _decode(path: Path, span: tuple[int, int]) -> _Decoded:
    frame = parse(_MESSAGES["Frame"], read_record(path, span))
    pose = _pose(frame.pose)
    lasers = _by_name(frame.context.laser_calibrations)
    scans = _by_name(frame.lasers)
    points, projections = [np.zeros((0, 3))], [np.zeros((0, 6), np.int64)]
    for name in sorted(scans.keys() & lasers.keys()):
        scanned = _points(name, scans[name], lasers[name], pose)
        points.append(scanned[0])
        projections.append(scanned[1])
    return _Decoded(
        points=np.concatenate(points),
        projections=np.concatenate(projections),
        pose=pose,
        images=_by_name(frame.images),
        cameras=_by_name(frame.context.camera_calibrations),
    )


def _points(
    name: int, scan: MessageClass, laser: MessageClass, car: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns points f64 [n 3] in the world and projections i64 [n 6] of what a camera sees."""
    first = scan.ri_return1
    if not first.HasField("range_image_compressed"):
        return np.zeros((0, 3)), np.zeros((0, 6), np.int64)
    ranges = _matrix("MatrixFloat", first.range_image_compressed)[..., 0]
    projections = _matrix("MatrixInt32", first.camera_projection_compressed)
    if projections.shape != (*ranges.shape, 6):
        raise ValueError(f"projections of {projections.shape} for ranges of {ranges.shape}")
    row, column = np.nonzero((ranges > 0) & (projections[..., 0] > 0))
    mounted = _pose(laser.extrinsic)
    inclination = _inclinations(laser, ranges.shape[0])[row]
    azimuth = _azimuths(mounted, ranges.shape[1])[column]
    level = np.cos(inclination)
    directions = np.stack(
        [np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(inclination)], axis=1
    )
    distances = ranges[row, column].astype(np.float64)[:, None]
    points = transform_points(directions * distances, mounted)
    if name == _ROOF and first.HasField("range_image_pose_compressed"):
        poses = _matrix("MatrixFloat", first.range_image_pose_compressed)
        points = _transform_each(points, poses[row, column].astype(np.float64))
    else:
        points = transform_points(points, car)
    return points, projections[row, column]


def _inclinations(laser: MessageClass, rows: int) -> np.ndarray:
    """Returns the angle f64 [h] of each row above the scanner's horizon, the highest first."""
    if not laser.beam_inclinations:
        if not (laser.HasField("beam_inclination_min") and laser.HasField("beam_inclination_max")):
            raise ValueError("a scanner without inclinations")
        low, high = laser.beam_inclination_min, laser.beam_inclination_max
        return (low + (np.arange(rows) + 0.5) / rows * (high - low))[::-1]
    if len(laser.beam_inclinations) != rows:
        raise ValueError(f"{len(laser.beam_inclinations)} inclinations for {rows} rows")
    return np.array(laser.beam_inclinations, np.float64)[::-1]


def _azimuths(mounted: np.ndarray, columns: int) -> np.ndarray:
    """Returns the angle f64 [w] of each column about the scanner's axis.

    The middle column points ahead of the car, not of the scanner.
    """
    yaw = np.arctan2(mounted[1, 0], mounted[0, 0])
    return np.pi * (1 - (2 * np.arange(columns) + 1) / columns) - yaw


def _transform_each(points: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Returns points [n 3], each under its own pose [n 6]: roll, pitch, yaw, then x y z."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(poses[:, :3].T), np.sin(poses[:, :3].T)
    x, y, z = points.T
    y, z = cr * y - sr * z, sr * y + cr * z
    x, z = cp * x + sp * z, cp * z - sp * x
    x, y = cy * x - sy * y, sy * x + cy * y
    return np.stack([x, y, z], axis=1) + poses[:, 3:]


def _matrix(kind: str, compressed: bytes) -> np.ndarray:
    """Returns a compressed MatrixFloat (f32) or MatrixInt32 (i64), [h w c]."""
    stored = parse(_MESSAGES[kind], zlib.decompress(compressed))
    numbers = np.array(stored.data, np.float32 if kind == "MatrixFloat" else np.int64)
    shape = tuple(stored.shape.dims)
    if len(shape) != 3 or min(shape) < 1 or math.prod(shape) != len(numbers):
        raise ValueError(f"{len(numbers)} numbers for a matrix of {shape}")
    return numbers.reshape(shape)


def _pose(message: MessageClass) -> np.ndarray:
    pose = np.array(message.transform, np.float64)
    if len(pose) != 16 or not np.isfinite(pose).all():
        raise ValueError("an invalid pose")
    pose = pose.reshape(4, 4)
    return make_pose(pose[:3, :3], pose[:3, 3])


def _by_name(messages: Iterable[MessageClass]) -> dict[int, MessageClass]:
    return {message.name: message for message in messages}


DATASET = FrameDataset(
    name="waymo",
    title="Waymo Open",
    splits=("training", "validation"),
    license="Waymo Open non-commercial",
    layout="SPLIT/*.tfrecord",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
