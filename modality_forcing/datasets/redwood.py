"""Redwood's rooms, and other recordings in the layout of Open3D's reconstruction system.

Layout, in the root or in folders of it: color/NAME.jpg or .png and depth/NAME.png, 16 bits in
millimeters along the axis, 0 where invalid. The camera is in camera_primesense.json,
intrinsic.json or camera_intrinsic.json, beside these folders or in the folder above: width, height
and intrinsic_matrix, a list of nine numbers in column-major order. Redwood's own frames, whose
names are five digits, come without such a file: 525, 525, 319.5, 239.5 for 640 x 480 pixels.
`--option camera=FX,FY,CX,CY` states any other. Intrinsics of another size are rescaled.
Source: redwood-data.org/indoor, isl-org/Open3D.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modality_forcing.data.intrinsics import check_principal_point, pinhole, rescale_intrinsics
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.camera_option import vga_intrinsics
from modality_forcing.datasets.common.formats import (
    read_json,
    read_rgb,
    read_uint16_depth,
    wrap_parse_errors,
)
from modality_forcing.datasets.common.lazy import DatasetInfo, first_file, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset

_CAMERA_FILES = ("camera_primesense.json", "intrinsic.json", "camera_intrinsic.json")
_PRIMESENSE = pinhole(525.0, 525.0, 319.5, 239.5)


def _list_frames(root: Path, split: str, unused: Unused) -> Iterable[Path]:
    files = glob_paths(root, "color/*", max_depth=1)
    images = (path for path in files if path.suffix in (".jpg", ".png"))
    maps = glob_paths(root, "depth/*.png", max_depth=1)
    return unused.with_depth(images, maps, _depth_path)


def _depth_path(image: Path) -> Path:
    return image.parents[1] / "depth" / f"{image.stem}.png"


def _camera_file(scene: Path) -> Path | None:
    folders = (scene, scene.resolve().parent)
    return first_file(folder / name for folder in folders for name in _CAMERA_FILES)


def _read_intrinsics(path: Path, image: Path, shape: tuple[int, ...]) -> np.ndarray:
    loaded = read_json(path)
    what = "holds no intrinsic_matrix of nine numbers"
    with wrap_parse_errors(path, what, "write the JSON that Open3D writes, or remove it"):
        matrix = np.array(loaded["intrinsic_matrix"], np.float64).reshape(3, 3).T
        size = int(loaded.get("height", 0)), int(loaded.get("width", 0))
    if min(size) > 0:
        return rescale_intrinsics(matrix, size, shape, image)
    return check_principal_point(matrix, shape, image, path.name)


def _read_frame(info: DatasetInfo, path: Path) -> Record:
    image, depth = read_rgb(path), read_uint16_depth(_depth_path(path), 1000)
    file = None if info.camera else _camera_file(path.parents[1])
    if file:
        intrinsics = _read_intrinsics(file, path, image.shape)
    else:
        known = _PRIMESENSE if re.fullmatch(r"\d{5}", path.stem) else None
        hint = f"put a {_CAMERA_FILES[0]} beside the folder of the images"
        intrinsics = vga_intrinsics(known, info.camera, image.shape, path, hint=hint)
    return make_record(info, path, image, depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="redwood",
    title="Redwood",
    splits=("train",),
    license="CC BY 3.0",
    layout="SCENE/{color/NAME.jpg, depth/NAME.png}",
    list_frames=_list_frames,
    read_frame=_read_frame,
    options=("camera",),
)
