"""ETH3D's high-resolution views: buildings and woods under a survey laser scanner, undistorted.

Layout: SCENE/images/dslr_images/NAME.JPG, ground_truth_depth/dslr_images/NAME.JPG (little-endian
floats despite the suffix: meters along the axis, inf where invalid) and
dslr_calibration_jpg/{cameras, images}.txt, COLMAP's text with THIN_PRISM_FISHEYE cameras. Images of
6048 x 4032 pixels are reduced to a quarter of that, and depth is picked at the full size.
The benchmark scores all 13 scenes: do not train on them. Some frames are stored sideways.
Source: eth3d.net/documentation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.data.resize import downscale_image
from modality_forcing.datasets.common.cameras import Camera, enclosed_pinhole, undistort
from modality_forcing.datasets.common.colmap import cameras_of_images
from modality_forcing.datasets.common.formats import (
    check_camera_size,
    read_photograph,
    read_raw_floats,
)
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset

# Pixels of the shorter side after the reduction, unless the original has fewer.
MIN_SHORT_SIDE = 1008


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[tuple[Path, Camera]]:
    for scene in glob_paths(root, "*"):
        images = glob_paths(scene, "images/dslr_images/*.JPG")
        depths = glob_paths(scene, "ground_truth_depth/dslr_images/*.JPG")
        pairs = unused.match(images, depths)
        cameras = cameras_of_images(scene / "dslr_calibration_jpg") if pairs else {}
        found = [(path, cameras.get(f"dslr_images/{path.name}")) for path, _ in pairs]
        yield from ((path, camera) for path, camera in found if camera)
        unposed = [path for path, camera in found if not camera]
        unused.add("images are not in their scene's images.txt", len(found), unposed)


def _depth_path(image: Path) -> Path:
    return image.parents[2] / "ground_truth_depth" / "dslr_images" / image.name


def scale_camera(camera: Camera, size: tuple[int, int]) -> Camera:
    """Returns the camera of the same view at another (h, w). The distortion terms stay the same."""
    down, across = size[0] / camera.size[0], size[1] / camera.size[1]
    cx, cy = (camera.cx + 0.5) * across - 0.5, (camera.cy + 0.5) * down - 0.5
    return replace(camera, size=size, fx=camera.fx * across, fy=camera.fy * down, cx=cx, cy=cy)


def _read_frame(info: DatasetInfo, frame: tuple[Path, Camera]) -> Record:
    path, camera = frame
    image = read_photograph(path, camera.size)
    height, width = image.shape[:2]
    depth = read_raw_floats(_depth_path(path), (height, width))
    hint = "both must come from the same download: unpack it again"
    check_camera_size(depth.shape, camera.size, path, hint)
    factor = max(1, min(camera.size) // MIN_SHORT_SIDE)
    small = scale_camera(camera, (height // factor, width // factor))
    pinhole = enclosed_pinhole(small)
    empty = np.zeros(small.size, np.float32)
    reduced = downscale_image(image, small.size)
    rectified, _, _ = undistort(reduced, empty, empty > 0, small, to=pinhole)
    _, depth, valid = undistort(np.zeros_like(image), depth, np.isfinite(depth), camera, to=pinhole)
    return make_record(info, path, rectified, depth, valid=valid, intrinsics=pinhole.matrix)


DATASET = FrameDataset(
    name="eth3d",
    title="ETH3D",
    splits=("train",),
    license="CC BY-NC-SA 4.0",
    layout="SCENE/{images, ground_truth_depth}/dslr_images/NAME.JPG and "
    "SCENE/dslr_calibration_jpg/{cameras, images}.txt",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
