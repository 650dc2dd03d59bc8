"""DDAD: six cameras around a car and long-range laser scanners, in TRI's DGP format.

`parallel_domain` has the same format. Layout: ddad.json, whose `scene_splits` name the scenes of
the splits (0 train, 1 val), and a folder per scene:
  scene_HASH.json: `data`, each datum with a key and an `image` or a `point_cloud` (file name, and
    pose of the sensor in the world when it measured), and `samples`, the keys of the datums of one
    moment and the key of their calibration;
  calibration/KEY.json: `names` of sensors with their `intrinsics` in the same order;
  rgb/CAMERA/TIME.jpg, and point_cloud/LIDAR/TIME.npz with key `data`, f64 x y z intensity in the
    frame of the LIDAR.
The split `every` is every scene in the root or one folder below, and needs no ddad.json. Files that
a scene names but that are missing are counted and left out.
Depth is in meters along the axis. Scan and image of a sample are up to 100 ms apart, in which a car
drives two meters: points go through the two sensors' poses in the world, not through their fixed
places on the car. Cameras are pinholes, of images of the size that the scene states, and are
rescaled to others. Points that only the scanner sees are left out; 0.2% to
0.5% of the pixels have depth. The car's own body, at the lower edge of five cameras, gives no
returns, so that a few points of the road behind it remain: no mask of it is distributed.
Source: TRI-ML/DDAD, README.md; TRI-ML/dgp, dgp/proto/{scene, sample, annotations, geometry}.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from modality_forcing.data.intrinsics import check_principal_point, pinhole, rescale_intrinsics
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.common.formats import (
    UNPACK_AGAIN,
    read_json,
    read_npz,
    read_rgb,
    wrap_parse_errors,
)
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.lidar import finite_points, project_points, to_camera
from modality_forcing.datasets.common.poses import make_pose, rotation_from_quaternion
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError
from modality_forcing.paths import is_file
from modality_forcing.tree import JsonObject

NAMED = "files that scenes name are not there"
_SPLITS = {"train": "0", "val": "1"}  # the numbers of the format


@dataclass(frozen=True)
class Datum:
    """One measurement of one sensor.

    kind: "image" or "point_cloud". pose: qw qx qy qz x y z of the sensor in the world.
    annotations: file names by the number of their type. size: (h, w) of an image, if stated.
    """

    kind: str
    sensor: str
    file: Path
    pose: tuple[float, ...]
    annotations: Mapping[str, str]
    size: tuple[int, int] | None


class _Frame(NamedTuple):
    image: Datum
    scan: Datum
    calibration: Path


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[_Frame]:
    if split == "every":
        scenes = [path for path in glob_paths(root, "scene_*.json", max_depth=1) if is_file(path)]
    else:
        scenes = _scenes_of_split(root, split)
    for scene in scenes:
        yield from _scene_frames(scene, unused)


def _scenes_of_split(root: Path, split: str) -> list[Path]:
    path = root / "ddad.json"
    if not is_file(path):
        what = f"no ddad.json, which names the scenes of split {split}"
        raise UserError(what, where=root, hint="put it there, or use --split=every")
    loaded = read_json(path)
    with wrap_parse_errors(path, f"names no scenes of split {split}"):
        return [root / name for name in loaded["scene_splits"][_SPLITS[split]]["filenames"]]


def _scene_frames(scene: Path, unused: Unused) -> Iterator[_Frame]:
    images, clouds = (
        dict.fromkeys(glob_paths(scene.parent, f"{kind}/*/*")) for kind in ("rgb", "point_cloud")
    )
    pairs = []
    for datums, calibration in read_samples(scene):
        here = [datum for datum in datums if datum.file in images or datum.file in clouds]
        absent = [datum.file for datum in datums if datum not in here]
        unused.add(NAMED, len(datums), absent)
        scans = [datum for datum in here if datum.kind == "point_cloud"]
        # Of several scanners, the one whose frame holds the points of all.
        merged = (datum for datum in scans if datum.sensor.lower() == "lidar")
        scan = next(merged, scans[0] if scans else None)
        # The others hold nothing else, but without an image none of them is used.
        others = [datum.file for datum in scans] if len(here) > len(scans) else []
        for datum in here:
            if scan and datum.kind == "image":
                yield _Frame(datum, scan, calibration)
                pairs.append((datum.file, scan.file))
        pairs += zip(others, others, strict=True)
    unused.add_partners(images, clouds, pairs)


def read_samples(scene: Path) -> Iterator[tuple[list[Datum], Path]]:
    """Yields the measurements of each moment of a scene, and the file of their calibration."""
    loaded = read_json(scene)
    with wrap_parse_errors(scene, "is not a scene of the DGP format"):
        read = {datum["key"]: _parse_datum(datum, scene.parent) for datum in loaded["data"]}
        samples = [
            (
                [datum for key in sample["datum_keys"] if (datum := read.get(key))],
                scene.parent / "calibration" / f"{sample['calibration_key']}.json",
            )
            for sample in loaded["samples"]
        ]
    yield from samples


def _parse_datum(datum: Any, folder: Path) -> Datum | None:
    """Returns an image or a scan, or None for another kind of sensor."""
    for kind in ("image", "point_cloud"):
        if content := datum["datum"].get(kind):
            rotation, translation = content["pose"]["rotation"], content["pose"]["translation"]
            return Datum(
                kind=kind,
                sensor=datum["id"]["name"],
                file=folder / content["filename"],
                pose=(
                    *(float(rotation[key]) for key in ("qw", "qx", "qy", "qz")),
                    *(float(translation[key]) for key in "xyz"),
                ),
                annotations=content.get("annotations", {}),
                size=_stated_size(content),
            )
    return None


def _stated_size(content: JsonObject) -> tuple[int, int] | None:
    size = int(content.get("height", 0)), int(content.get("width", 0))
    return size if min(size) > 0 else None


def read_camera(
    calibration: Path,
    name: str,
    image: Path,
    shape: tuple[int, ...],
    *,
    size: tuple[int, int] | None = None,
) -> Camera:
    """Returns the camera of that name for an image of `shape` [h w 3].

    size: (h, w) for which the camera was calibrated, if stated; it is rescaled to the image.
    Raises UserError if the calibration has no such camera or one for other images.
    """
    loaded = read_json(calibration)
    with wrap_parse_errors(calibration, f"holds no pinhole camera {name}"):
        values = dict(zip(loaded["names"], loaded["intrinsics"], strict=True))[name]
        matrix = pinhole(*(float(values[key]) for key in ("fx", "fy", "cx", "cy")))
        if size:
            matrix = rescale_intrinsics(matrix, size, shape, image)
        (fx, _, cx), (_, fy, cy), _ = matrix.tolist()
        camera = Camera("pinhole", (shape[0], shape[1]), fx, fy, cx, cy)
    check_principal_point(matrix, shape, image, f"camera {name}")
    return camera


def _read_frame(info: DatasetInfo, frame: _Frame, drop_occluded: bool = True) -> Record:
    path = frame.image.file
    image = read_rgb(path)
    sensor, size = frame.image.sensor, frame.image.size
    camera = read_camera(frame.calibration, sensor, path, image.shape, size=size)
    stored = read_npz(frame.scan.file, "data")
    if stored.ndim != 2 or stored.shape[1] < 3:
        what = f"holds numbers of shape {stored.shape}, not points"
        raise UserError(what, where=frame.scan.file, hint=UNPACK_AGAIN)
    points = to_camera(finite_points(stored[:, :3]), _pose(frame.scan), _pose(frame.image))
    depth, valid = project_points(points, camera, drop_occluded=drop_occluded)
    return make_record(info, path, image, depth, valid=valid, intrinsics=camera.matrix)


def _pose(datum: Datum) -> np.ndarray:
    with wrap_parse_errors(datum.file, "its scene gives it no pose", "leave the frame out"):
        return make_pose(rotation_from_quaternion(*datum.pose[:4]), np.array(datum.pose[4:]))


DATASET = FrameDataset(
    name="ddad",
    title="DDAD",
    splits=("train", "val", "every"),
    license="CC BY-NC-SA 4.0",
    layout="ddad.json beside folders with scene_*.json, calibration/, rgb/ and point_cloud/",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
