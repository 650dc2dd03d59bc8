"""ETH3D's high-resolution views: buildings and woods under a surveyor's scanner, straightened for their lens.

Layout: SCENE/images/dslr_images/NAME.JPG, ground_truth_depth/dslr_images/NAME.JPG (no picture: little-endian floats, metres
along the axis, inf where unknown) and dslr_calibration_jpg/{cameras, images}.txt, COLMAP's text with THIN_PRISM_FISHEYE
cameras. Pictures of 6048 x 4032 pixels are brought to a quarter of that on the way, depth is picked at the full size.
All 13 scenes are scored by evaluation: not to be trained on. Some frames lie on their side, as in the original.
Source: eth3d.net/documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.data.resize import downscale_image
from modality_forcing.datasets.common.cameras import Camera, pinhole_like, undistort
from modality_forcing.datasets.common.colmap import cameras_of_images
from modality_forcing.datasets.common.formats import read_raw_floats, read_rgb
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

SHORT_SIDE = 1008  # pixels that the shorter side of a picture has at least, unless it has fewer from the start
_TITLE = "ETH3D"


def _open(root: Path, split: str) -> LazySource[tuple[Path, Camera]]:
    root = require_dir(root, _TITLE)
    frames = []
    for scene in sorted(
        {path.parents[1] for path in glob_paths(root, "*/ground_truth_depth/dslr_images")}
    ):
        cameras: Mapping[str, Camera] = cameras_of_images(scene / "dslr_calibration_jpg")
        pictures = glob_paths(scene, "images/dslr_images/*.JPG")
        named = [(path, f"dslr_images/{path.name}") for path in pictures if _depth(path).is_file()]
        frames += [(path, cameras[name]) for path, name in named if name in cameras]
    layout = "SCENE/{images, ground_truth_depth}/dslr_images/NAME.JPG and SCENE/dslr_calibration_jpg/{cameras, images}.txt"
    return LazySource(
        require_nonempty(frames, root, _TITLE, layout),
        partial(_read, DatasetInfo("eth3d", "metric", root)),
    )


def _depth(picture: Path) -> Path:
    return picture.parents[2] / "ground_truth_depth" / "dslr_images" / picture.name


def shrunk(camera: Camera, size: tuple[int, int]) -> Camera:
    """Returns the camera of the same view at another (h, w); the lens is the same in parts of the focal length."""
    down, across = size[0] / camera.size[0], size[1] / camera.size[1]
    cx, cy = (camera.cx + 0.5) * across - 0.5, (camera.cy + 0.5) * down - 0.5
    return replace(camera, size=size, fx=camera.fx * across, fy=camera.fy * down, cx=cx, cy=cy)


def _read(info: DatasetInfo, frame: tuple[Path, Camera]) -> Record:
    path, camera = frame
    image = read_rgb(path)
    depth = read_raw_floats(_depth(path), image.shape[:2])
    if depth.shape != camera.size:
        (height, width), (rows, columns) = depth.shape, camera.size
        what = f"is {width} x {height} pixels, but its camera {columns} x {rows}"
        raise UserError(
            what, where=path, hint="both must come from the same download: unpack it again"
        )
    smaller = max(1, min(camera.size) // SHORT_SIDE)
    small = shrunk(camera, (camera.size[0] // smaller, camera.size[1] // smaller))
    to = pinhole_like(small, filled=True)
    nothing = np.zeros(small.size, np.float32)
    picture, _, _ = undistort(downscale_image(image, small.size), nothing, nothing > 0, small, to)
    _, depth, valid = undistort(np.zeros_like(image), depth, np.isfinite(depth), camera, to)
    return make_record(info, path, picture, depth, valid, to.matrix)


DATASET = Dataset("eth3d", _TITLE, "metric", ("train",), "CC BY-NC-SA 4.0", _open)
