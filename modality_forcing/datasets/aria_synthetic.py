"""Aria Synthetic Environments: rendered homes through the fisheye of Aria's glasses, straightened.

Layout, in the folder given or in SPLIT/ of it: SCENE/rgb/vignetteNNNNNNN.jpg and depth/depthNNNNNNN.png, 16 bits,
millimetres along each pixel's ray, 0 and 65535 where unknown. All scenes have one camera, of which the calibration comes with
the tools of the set and not with the scenes. Ranges are first brought to depth along the axis, then both are straightened
to 704 x 704 pixels of a pinhole camera whose corners reach as far as the lens does, a radian off its axis. Pictures lie on
their side as stored; they are turned upright. There is no official split.
Source: facebookresearch/projectaria_tools, projects/AriaSyntheticEnvironment and core/calibration (Fisheye624).
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.cameras import Camera, pinhole_like, undistort, z_from_range
from modality_forcing.datasets.common.formats import check_same_size, read_rgb, read_uint16_depth
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    require_dir,
    require_nonempty,
    rot90,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "Aria Synthetic Environments"
_SIZE = (704, 704)
_RADIAL = (
    0.3650890375644368,
    -0.1738082418112771,
    -0.7534945484033189,
    2.434788882752295,
    -2.57786220300886,
    0.8788483538598834,
)
_TANGENTIAL = (0.0008005198595407136, -0.000294237814554143)
CAMERA = Camera(
    "fisheye624",
    _SIZE,
    297.6375381033778,
    297.6375381033778,
    357.6599197217746,
    349.1922497127481,
    (*_RADIAL, *_TANGENTIAL, 0.0, 0.0, 0.0, 0.0),
)
STRAIGHT = pinhole_like(CAMERA, size=_SIZE, focal=320.0)


def _open(root: Path, split: str) -> LazySource[Path]:
    root = require_dir(root, _TITLE)
    pictures = [
        path for above in ("", "*/") for path in glob_paths(root, f"{above}*/rgb/vignette*.jpg")
    ]
    pictures = [path for path in pictures if _depth(path).is_file()]
    layout = "SCENE/{rgb/vignetteNNNNNNN.jpg, depth/depthNNNNNNN.png}"
    return LazySource(
        require_nonempty(pictures, root, _TITLE, layout),
        partial(_read, DatasetInfo("aria_synthetic", "metric", root)),
    )


def _depth(picture: Path) -> Path:
    return picture.parents[1] / "depth" / f"depth{picture.stem.removeprefix('vignette')}.png"


def _read(info: DatasetInfo, picture: Path) -> Record:
    image, distance = (
        read_rgb(picture),
        read_uint16_depth(_depth(picture), 1000, unknown=(0, 65535)),
    )
    check_same_size(image, distance, picture, _depth(picture))
    if distance.shape != _SIZE:
        what = f"is {distance.shape[1]} x {distance.shape[0]} pixels, not 704 x 704, for which the camera is known"
        raise UserError(what, where=_depth(picture), hint="unpack the original again")
    depth = z_from_range(distance, CAMERA)
    valid = np.isfinite(depth) & (depth > 0)
    image, depth, valid = undistort(image, depth, valid, CAMERA, STRAIGHT)
    image, depth, intrinsics = rot90(image, np.where(valid, depth, 0), STRAIGHT.matrix, 3)
    return make_record(info, picture, image, depth, intrinsics=intrinsics)


DATASET = Dataset("aria_synthetic", _TITLE, "metric", ("train",), "Project Aria's, research", _open)
