"""Redwood's rooms, and other recordings in the layout of Open3D's reconstruction system.

Layout, in the root or in folders of it: color/NAME.jpg or .png and depth/NAME.png, 16 bits in
millimeters along the axis, 0 where invalid. The camera is in camera_primesense.json or
intrinsic.json, beside these folders or above them: its intrinsic_matrix is a list of nine numbers
in column-major order. Without such a file it is 525, 525, 319.5, 239.5.
Source: redwood-data.org/indoor, isl-org/Open3D.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import (
    read_rgb,
    read_text,
    read_uint16_depth,
    wrap_parse_errors,
)
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    first_file,
    glob_paths,
    make_record,
    pinhole,
)
from modality_forcing.datasets.registry import FrameDataset

_CAMERA_FILES = ("camera_primesense.json", "intrinsic.json", "camera_intrinsic.json")
_PRIMESENSE = pinhole(525.0, 525.0, 319.5, 239.5)


def _list_frames(root: Path, split: str) -> list[Path]:
    return [
        path
        for path in (*glob_paths(root, "color/*"), *glob_paths(root, "*/color/*"))
        if path.suffix in (".jpg", ".png") and _depth_path(path).is_file()
    ]


def _depth_path(image: Path) -> Path:
    return image.parents[1] / "depth" / f"{image.stem}.png"


def _read_intrinsics(scene: Path, root: Path) -> np.ndarray:
    path = first_file(folder / name for folder in (scene, root) for name in _CAMERA_FILES)
    if path is None:
        return _PRIMESENSE
    what = "holds no intrinsic_matrix of nine numbers"
    with wrap_parse_errors(path, what, "write the JSON that Open3D writes, or remove it"):
        numbers = json.loads(read_text(path))["intrinsic_matrix"]
        return np.array(numbers, np.float64).reshape(3, 3).T


def _read_frame(info: DatasetInfo, path: Path) -> Record:
    image, depth = read_rgb(path), read_uint16_depth(_depth_path(path), 1000)
    intrinsics = _read_intrinsics(path.parents[1], info.root)
    return make_record(info, path, image, depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="redwood",
    title="Redwood",
    splits=("train",),
    license="CC BY 3.0",
    layout="SCENE/{color/NAME.jpg, depth/NAME.png}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
