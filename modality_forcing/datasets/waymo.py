"""Waymo Open, perception data set: five cameras and five laser scanners of a car, in TFRecord files of Frame messages.

Layout: {training, validation}/*.tfrecord, a file a drive of 20 s, ten frames a second, of each the cameras FRONT,
FRONT_LEFT, FRONT_RIGHT (1920 x 1280 pixels), SIDE_LEFT and SIDE_RIGHT (1920 x 886). Version 1 of the format, where cameras'
pictures and scans lie in one message; version 2, in Parquet files, is not read.

Scans are range images. Of a cell's first return, the second is passed over, range, direction (from its row's inclination
and its column's azimuth), the scanner's place on the car and the car's pose (that of the cell for the scanner on the roof,
else the frame's) make a point in the world. The message also has the pixel at which each camera saw that point, found with
the lens and the rolling shutter taken into account: depth is put there. It is metres along the camera's axis, from where the
car was when the picture was taken; Waymo's cameras have x ahead. Of points in a pixel the nearest is kept, and points that
only the scanner sees are left out.

Pictures keep the distortion of their lens. Intrinsics are those of the pinhole in the middle, off by up to 2% of the radius
in the corners; since pixels count from their corner in this set, half a pixel is taken from the axis (inferred for
intrinsics, stated for projections).
Source: waymo-research/waymo-open-dataset, dataset.proto, utils/{frame_utils, range_image_utils, transform_utils}.py.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import reading
from modality_forcing.datasets.common.lazy import (
    Frames,
    Origin,
    folder_of,
    found,
    listed,
    make_record,
    pinhole,
)
from modality_forcing.datasets.common.lidar import NEAREST, inverse, make_pose, move, place_points
from modality_forcing.datasets.common.tfrecord import find_records, read_record
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError
from modality_forcing.storage import protobuf
from modality_forcing.storage.protobuf import Fields

CAMERAS = {1: "FRONT", 2: "FRONT_LEFT", 3: "FRONT_RIGHT", 4: "SIDE_LEFT", 5: "SIDE_RIGHT"}

_TITLE = "Waymo Open"
_ROOF = 1  # the scanner whose cells have poses of their own
# Numbers of fields, by the message that has them.
_FRAME = {"context": 1, "pose": 3, "images": 4, "lasers": 5}
_CONTEXT = {"cameras": 2, "lasers": 3}
_CAMERA = {"name": 1, "intrinsic": 2, "extrinsic": 3, "width": 4, "height": 5}
_LASER = {"name": 1, "inclinations": 2, "least": 3, "most": 4, "extrinsic": 5}
_IMAGE = {"name": 1, "jpeg": 2, "pose": 3}
_SCAN = {"name": 1, "first_return": 2}
_RETURN = {"ranges": 2, "projections": 3, "poses": 4}


@dataclass(frozen=True)
class _Frame:
    file: Path
    number: int
    place: tuple[int, int]
    camera: int


@dataclass(frozen=True, eq=False)
class _Decoded:
    points: np.ndarray  # f64 [n 3] in the world
    projections: np.ndarray  # i64 [n 6]: camera, x and y, twice
    pose: np.ndarray  # f64 [4 4] of the car
    images: dict[int, Fields]
    cameras: dict[int, Fields]  # their calibrations


def _open(root: Path, split: str) -> Frames[_Frame]:
    root = folder_of(root, _TITLE)
    frames = (
        _Frame(path, number, place, camera)
        for path in listed(root, f"{split}/*.tfrecord")
        for number, place in enumerate(find_records(path))
        for camera in CAMERAS
    )
    kept = found(frames, root, f"{_TITLE}'s split {split}", f"{split}/*.tfrecord")
    return Frames(kept, partial(_read, Origin("waymo", "metric", root)))


def _read(origin: Origin, frame: _Frame, drop_hidden: bool = True) -> Record:
    name = CAMERAS[frame.camera]
    with reading(frame.file, f"frames of {_TITLE}"):
        decoded = _decode(frame.file, frame.place)
        if frame.camera not in decoded.images or frame.camera not in decoded.cameras:
            raise UserError(
                f"frame {frame.number} has no picture of {name}",
                where=frame.file,
                hint="leave the frame out",
            )
        taken, calibration = decoded.images[frame.camera], decoded.cameras[frame.camera]
        with Image.open(io.BytesIO(protobuf.content(taken, _IMAGE["jpeg"]))) as opened:
            image = np.array(opened.convert("RGB"))
        size = tuple(protobuf.integer(calibration, _CAMERA[side]) for side in ("height", "width"))
        if image.shape[:2] != size:
            raise ValueError(f"a picture of {image.shape} where {size} is calibrated")
        fx, fy, cx, cy = protobuf.doubles(calibration, _CAMERA["intrinsic"])[:4]
        car = _pose(taken, _IMAGE["pose"]) if _IMAGE["pose"] in taken else decoded.pose
        camera = car @ _pose(calibration, _CAMERA["extrinsic"])
    z = move(decoded.points, inverse(camera))[:, 0]
    pixels, which = _seen_by(decoded.projections, frame.camera)
    ahead = z[which] >= NEAREST
    depth, valid = place_points(
        pixels[ahead], z[which][ahead], image.shape[:2], drop_hidden=drop_hidden
    )
    # A path that there is not: a frame is known by its file, its number and its camera.
    path = frame.file.with_suffix("") / f"{frame.number:03d}" / f"{name}.jpg"
    return make_record(origin, path, image, depth, valid, pinhole(fx, fy, cx - 0.5, cy - 0.5))


def _seen_by(projections: np.ndarray, camera: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels i64 [k 2] at which a camera sees points, and which of the n points these are; two cameras may see one."""
    first, second = (np.flatnonzero(projections[:, column] == camera) for column in (0, 3))
    return np.concatenate([projections[first, 1:3], projections[second, 4:6]]), np.concatenate(
        [first, second]
    )


@lru_cache(maxsize=1)  # the cameras of a frame are read one after the other
def _decode(path: Path, place: tuple[int, int]) -> _Decoded:
    frame = protobuf.parse(read_record(path, place))
    context = protobuf.message(frame, _FRAME["context"])
    pose = _pose(frame, _FRAME["pose"])
    lasers = _by_name(protobuf.messages(context, _CONTEXT["lasers"]), _LASER["name"])
    scans = _by_name(protobuf.messages(frame, _FRAME["lasers"]), _SCAN["name"])
    parts = [
        _points(name, scans[name], lasers[name], pose)
        for name in sorted(scans.keys() & lasers.keys())
    ]
    return _Decoded(
        points=np.concatenate([np.zeros((0, 3)), *(points for points, _ in parts)]),
        projections=np.concatenate(
            [np.zeros((0, 6), np.int64), *(projections for _, projections in parts)]
        ),
        pose=pose,
        images=_by_name(protobuf.messages(frame, _FRAME["images"]), _IMAGE["name"]),
        cameras=_by_name(protobuf.messages(context, _CONTEXT["cameras"]), _CAMERA["name"]),
    )


def _points(
    name: int, scan: Fields, laser: Fields, car: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Points f64 [n 3] in the world and their projections i64 [n 6], of the returns of a scanner that a camera sees."""
    first = protobuf.message(scan, _SCAN["first_return"])
    if _RETURN["ranges"] not in first:
        return np.zeros((0, 3)), np.zeros((0, 6), np.int64)
    ranges = _matrix(first, _RETURN["ranges"], "floats")[..., 0]
    projections = _matrix(first, _RETURN["projections"], "integers")
    if projections.shape != (*ranges.shape, 6):
        raise ValueError(f"projections of {projections.shape} for ranges of {ranges.shape}")
    row, column = np.nonzero((ranges > 0) & (projections[..., 0] > 0))
    mounted = _pose(laser, _LASER["extrinsic"])
    inclination, azimuth = (
        _inclinations(laser, ranges.shape[0])[row],
        _azimuths(mounted, ranges.shape[1])[column],
    )
    level = np.cos(inclination)
    directions = np.stack(
        [np.cos(azimuth) * level, np.sin(azimuth) * level, np.sin(inclination)], axis=1
    )
    points = move(directions * ranges[row, column].astype(np.float64)[:, None], mounted)
    if name == _ROOF and _RETURN["poses"] in first:
        points = _move_each(
            points, _matrix(first, _RETURN["poses"], "floats")[row, column].astype(np.float64)
        )
    else:
        points = move(points, car)
    return points, projections[row, column]


def _inclinations(laser: Fields, rows: int) -> np.ndarray:
    """The angle f64 [h] above the scanner's horizon of each row, the highest first."""
    given = protobuf.doubles(laser, _LASER["inclinations"])
    if not len(given):
        least, most = (protobuf.doubles(laser, _LASER[end])[-1] for end in ("least", "most"))
        given = least + (np.arange(rows) + 0.5) / rows * (most - least)
    if len(given) != rows:
        raise ValueError(f"{len(given)} inclinations for {rows} rows")
    return given[::-1]


def _azimuths(mounted: np.ndarray, columns: int) -> np.ndarray:
    """The angle f64 [w] of each column about the scanner's axis; the middle one looks ahead of the car, not of the scanner."""
    turned = np.arctan2(mounted[1, 0], mounted[0, 0])
    return np.pi * (1 - (2 * np.arange(columns) + 1) / columns) - turned


def _move_each(points: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Points [n 3], each under a pose of its own [n 6]: roll, pitch and yaw, applied in this order, and a translation."""
    (cr, cp, cy), (sr, sp, sy) = np.cos(poses[:, :3].T), np.sin(poses[:, :3].T)
    x, y, z = points.T
    y, z = cr * y - sr * z, sr * y + cr * z
    x, z = cp * x + sp * z, cp * z - sp * x
    x, y = cy * x - sy * y, sy * x + cy * y
    return np.stack([x, y, z], axis=1) + poses[:, 3:]


def _matrix(fields: Fields, number: int, kind: str) -> np.ndarray:
    """A compressed MatrixFloat or MatrixInt32, [h w c]."""
    stored = protobuf.parse(zlib.decompress(protobuf.content(fields, number)))
    numbers = (protobuf.floats if kind == "floats" else protobuf.integers)(stored, 1)
    shape = protobuf.integers(protobuf.message(stored, 2), 1)
    if len(shape) != 3 or shape.min() < 1 or shape.prod() != len(numbers):
        raise ValueError(f"{len(numbers)} numbers for a matrix of {shape}")
    return numbers.reshape(shape)


def _pose(fields: Fields, number: int) -> np.ndarray:
    pose = protobuf.doubles(protobuf.message(fields, number), 1)
    if len(pose) != 16 or not np.isfinite(pose).all():
        raise ValueError("a pose that is none")
    pose = pose.reshape(4, 4)
    return make_pose(pose[:3, :3], pose[:3, 3])


def _by_name(messages: list[Fields], number: int) -> dict[int, Fields]:
    return {protobuf.integer(one, number): one for one in messages}


DATASET = Dataset(
    "waymo", _TITLE, "metric", ("training", "validation"), "Waymo Open non-commercial", _open
)
