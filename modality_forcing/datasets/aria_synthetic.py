"""Aria Synthetic Environments: rendered homes through the fisheye of Aria glasses, undistorted.

Layout, in the root or in SPLIT/ of it: SCENE/rgb/vignetteNNNNNNN.jpg and
depth/depthNNNNNNN.png: 16 bits, millimeters along each pixel's ray, 0 and 65535 where invalid. All
scenes have one camera, whose calibration comes with the tools and not with the scenes. Ranges are
converted to depth along the axis, then image and depth are undistorted to 704 x 704 pixels of a
pinhole camera whose corners reach as far as the lens, one radian off the axis. Images are stored
sideways and rotated upright here. There is no official split.
Source: facebookresearch/projectaria_tools, projects/AriaSyntheticEnvironment and core/calibration
(Fisheye624).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.cameras import Camera, undistort, z_from_range
from modality_forcing.datasets.common.formats import (
    check_camera_size,
    check_same_size,
    read_rgb,
    read_uint16_depth,
)
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record, rot90
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset

_SIZE = (704, 704)
_RADIAL = (
    *(0.3650890375644368, -0.1738082418112771, -0.7534945484033189),
    *(2.434788882752295, -2.57786220300886, 0.8788483538598834),
)
_TANGENTIAL = (0.0008005198595407136, -0.000294237814554143)
CAMERA = Camera(
    model="fisheye624",
    size=_SIZE,
    fx=297.6375381033778,
    fy=297.6375381033778,
    cx=357.6599197217746,
    cy=349.1922497127481,
    distortion=(*_RADIAL, *_TANGENTIAL, 0.0, 0.0, 0.0, 0.0),
)
PINHOLE = Camera("pinhole", _SIZE, 320.0, 320.0, cx=(_SIZE[1] - 1) / 2, cy=(_SIZE[0] - 1) / 2)


def _list_frames(root: Path, split: str, unused: Unused) -> Iterable[Path]:
    images = glob_paths(root, "*/rgb/vignette*.jpg", max_depth=1)
    depths = glob_paths(root, "*/depth/depth*.png", max_depth=1)
    return unused.with_depth(images, depths, _depth_path)


def _depth_path(image: Path) -> Path:
    return image.parents[1] / "depth" / f"depth{image.stem.removeprefix('vignette')}.png"


def _read_frame(info: DatasetInfo, path: Path) -> Record:
    depth_path = _depth_path(path)
    image = read_rgb(path)
    distance = read_uint16_depth(depth_path, 1000, invalid=(0, 65535))
    check_same_size(image, distance, path, depth_path)
    check_camera_size(distance.shape, _SIZE, depth_path)
    depth = z_from_range(distance, CAMERA)
    valid = np.isfinite(depth) & (depth > 0)
    image, depth, valid = undistort(image, depth, valid, CAMERA, to=PINHOLE)
    image, depth, intrinsics = rot90(image, np.where(valid, depth, 0), PINHOLE.matrix, 3)
    return make_record(info, path, image, depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="aria_synthetic",
    title="Aria Synthetic Environments",
    splits=("train",),
    license="Project Aria's, research",
    layout="SCENE/{rgb/vignetteNNNNNNN.jpg, depth/depthNNNNNNN.png}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
