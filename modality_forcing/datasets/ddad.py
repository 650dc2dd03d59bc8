"""DDAD: six cameras around a car and long-range laser scanners, in TRI's DGP format, which `parallel_domain` has too.

Layout: ddad.json, whose `scene_splits` name the scenes of the splits (0 train, 1 val), and a folder a scene:
  scene_HASH.json: `data`, each datum with a key and an `image` or a `point_cloud` (file name, and pose of the sensor in the
    world when it measured), and `samples`, the keys of the datums of one moment and the key of their calibration;
  calibration/KEY.json: `names` of sensors with their `intrinsics` in the same order;
  rgb/CAMERA/TIME.jpg, and point_cloud/LIDAR/TIME.npz with key `data`, f64 x y z intensity in the frame of the LIDAR.
The split `every` is every scene in the folder or one below, and needs no ddad.json. What a scene names and its folder does not
hold is passed over.
Depth is metres along the axis. Scan and picture of a sample are up to 100 ms apart, in which a car drives two metres: points
go through the two sensors' poses in the world, not through the fixed places of both on the car. Cameras are pinholes.
Points that only the scanner sees are left out; the other 0.2% to 0.5% of the pixels have depth. The car's own body, at the
lower edge of five cameras, gives no returns, so that a few points of the road behind it stay: nothing tells where it is.
Source: TRI-ML/DDAD, README.md; TRI-ML/dgp, dgp/proto/{scene, sample, annotations, geometry}.proto.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.common.formats import read_npz, read_rgb, read_text
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

_TITLE = "DDAD"
_LAYOUT = "ddad.json beside folders with scene_*.json, calibration/, rgb/ and point_cloud/"
_AGAIN = "unpack or download it again"
_SPLITS = {"train": "0", "val": "1"}  # as the format counts them

Pose = tuple[float, ...]  # qw qx qy qz x y z


@dataclass(frozen=True)
class Datum:
    """What one sensor measured once: the file of its `image` or `point_cloud`, and where the sensor was in the world."""

    kind: str
    sensor: str
    file: Path
    pose: Pose
    annotations: Mapping[str, str]  # file names by the number of their type


@dataclass(frozen=True)
class _Frame:
    image: Datum
    scan: Datum
    calibration: Path


def _open(root: Path, split: str) -> LazySource[_Frame]:
    root = require_dir(root, _TITLE)
    scenes = find_scenes(root) if split == "every" else _indexed_scenes(root, split)
    kept = require_nonempty(
        (frame for scene in scenes for frame in _frames(scene)),
        root,
        f"{_TITLE}'s split {split}",
        _LAYOUT,
    )
    return LazySource(kept, partial(_read, DatasetInfo("ddad", "metric", root)))


def find_scenes(root: Path) -> list[Path]:
    """Returns the scene_*.json files in a folder and one below."""
    return [
        path
        for above in ("", "*/")
        for path in glob_paths(root, f"{above}scene_*.json")
        if path.is_file()
    ]


def _indexed_scenes(root: Path, split: str) -> list[Path]:
    path = root / "ddad.json"
    if not path.is_file():
        raise UserError(
            f"no ddad.json, which names the scenes of split {split}",
            where=root,
            hint="put it there, or take all",
        )
    try:
        return [
            root / name for name in read_json(path)["scene_splits"][_SPLITS[split]]["filenames"]
        ]
    except (KeyError, TypeError) as error:
        raise UserError(f"names no scenes of split {split}", where=path, hint=_AGAIN) from error


def _frames(scene: Path) -> Iterator[_Frame]:
    files = set(glob_paths(scene.parent, "rgb/*/*")) | set(
        glob_paths(scene.parent, "point_cloud/*/*")
    )
    for datums, calibration in read_samples(scene):
        here = [datum for datum in datums if datum.file in files]
        scans = [datum for datum in here if datum.kind == "point_cloud"]
        # Of several scanners the one in whose frame the points of all are gathered.
        scan = next(
            (datum for datum in scans if datum.sensor.lower() == "lidar"),
            scans[0] if scans else None,
        )
        if scan:
            yield from (_Frame(datum, scan, calibration) for datum in here if datum.kind == "image")


def read_samples(scene: Path) -> Iterator[tuple[list[Datum], Path]]:
    """Returns what the sensors measured at each moment of a scene, and the file of their calibration.

    Raises UserError for a scene that is damaged.
    """
    loaded = read_json(scene)
    try:
        datums = {
            datum["key"]: read for datum in loaded["data"] if (read := _datum(datum, scene.parent))
        }
        for sample in loaded["samples"]:
            calibration = scene.parent / "calibration" / f"{sample['calibration_key']}.json"
            yield [datums[key] for key in sample["datum_keys"] if key in datums], calibration
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError("is not a scene of the DGP format", where=scene, hint=_AGAIN) from error


def _datum(datum: Any, folder: Path) -> Datum | None:
    """A picture or a scan; None for a sensor of another kind."""
    for kind in ("image", "point_cloud"):
        if what := datum["datum"].get(kind):
            turn, at = what["pose"]["rotation"], what["pose"]["translation"]
            pose = tuple(float(turn[key]) for key in ("qw", "qx", "qy", "qz")) + tuple(
                float(at[key]) for key in "xyz"
            )
            return Datum(
                kind,
                datum["id"]["name"],
                folder / what["filename"],
                pose,
                what.get("annotations", {}),
            )
    return None


def read_camera(calibration: Path, name: str, size: tuple[int, int]) -> Camera:
    """Returns the camera of that name for pictures of (h, w) `size`; raises UserError if it has none or is not for these."""
    loaded = read_json(calibration)
    try:
        values = dict(zip(loaded["names"], loaded["intrinsics"], strict=True))[name]
        camera = Camera(
            "pinhole",
            size,
            *(float(values[key]) for key in ("fx", "fy", "cx", "cy")),
            distortion=(),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"holds no pinhole camera {name}", where=calibration, hint=_AGAIN
        ) from error
    if not (0.25 < camera.cx / size[1] < 0.75 and 0.25 < camera.cy / size[0] < 0.75):
        what = f"camera {name} is not one of pictures of {size[1]} x {size[0]} pixels"
        raise UserError(
            what, where=calibration, hint="it must be from the same download as the pictures"
        )
    return camera


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds; raises UserError if it is missing or damaged."""
    try:
        return json.loads(read_text(path, "JSON"))
    except (ValueError, RecursionError) as error:
        raise UserError("is not valid JSON", where=path, hint=_AGAIN) from error


def _read(info: DatasetInfo, frame: _Frame, drop_occluded: bool = True) -> Record:
    image = read_rgb(frame.image.file)
    camera = read_camera(frame.calibration, frame.image.sensor, image.shape[:2])
    stored = read_npz(frame.scan.file, "data")
    if stored.ndim != 2 or stored.shape[1] < 3:
        raise UserError(
            f"holds numbers of shape {stored.shape}, not points", where=frame.scan.file, hint=_AGAIN
        )
    scanner, viewer = (_pose(datum) for datum in (frame.scan, frame.image))
    depth, valid = project_points(
        to_camera(finite_points(stored[:, :3]), scanner, viewer),
        camera,
        drop_occluded=drop_occluded,
    )
    return make_record(info, frame.image.file, image, depth, valid, camera.matrix)


def _pose(datum: Datum) -> np.ndarray:
    try:
        return make_pose(rotation_from_quaternion(*datum.pose[:4]), np.array(datum.pose[4:]))
    except ValueError as error:
        raise UserError(
            "its scene gives it no pose", where=datum.file, hint="leave the frame out"
        ) from error


DATASET = Dataset("ddad", _TITLE, "metric", ("train", "val", "every"), "CC BY-NC-SA 4.0", _open)
