"""SUN RGB-D: four depth cameras in rooms, raw depth.

Layout: SENSOR/SET/SCENE/ (deeper for some sets), each with image/NAME.jpg, depth/NAME.png and
intrinsics.txt; the filled depth_bfx/ is not read. Depth is 16-bit PNG, millimeters along the axis
with their bits rotated (`read_sunrgbd_depth`), 0 where invalid. intrinsics.txt holds nine numbers,
for pixels counted from 1.
Pitfall: kv1/NYUdata are the labeled frames of NYUv2, 654 of which the benchmark scores: the split
"without_nyu" leaves them out, also where the root is that folder. The official split is in a MATLAB
file and is not read.
Source: rgbd.cs.princeton.edu, toolbox read3dPoints.m.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modality_forcing.data.intrinsics import check_principal_point
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import (
    read_rgb,
    read_sunrgbd_depth,
    read_text,
    wrap_parse_errors,
)
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[tuple[Path, Path]]:
    scenes = [path.parent for path in glob_paths(root, "**/intrinsics.txt")]
    for scene in scenes:
        images, maps = glob_paths(scene, "image/*.jpg"), glob_paths(scene, "depth/*.png")
        pairs = list(zip(images, maps, strict=True)) if len(images) == len(maps) == 1 else []
        unused.add_partners(images, maps, pairs)
        for image, path in pairs:
            is_nyu = "NYUdata" in scene.resolve().parts or re.fullmatch(r"NYU\d{4}", image.stem)
            if split != "without_nyu" or not is_nyu:
                yield image, path
    with_camera = set(scenes)
    images = glob_paths(root, "**/image/*.jpg")
    alone = [path for path in images if path.parents[1] not in with_camera]
    unused.add("images have no intrinsics.txt", len(images), alone)


def _read_intrinsics(path: Path) -> np.ndarray:
    with wrap_parse_errors(path, "is not nine numbers", "unpack it again"):
        matrix = np.array(read_text(path).split(), np.float64).reshape(3, 3)
    matrix[:2, 2] -= 1
    return matrix


def _read_frame(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    path, depth_path = frame
    intrinsics = _read_intrinsics(path.parents[1] / "intrinsics.txt")
    image, depth = read_rgb(path), read_sunrgbd_depth(depth_path)
    check_principal_point(intrinsics, image.shape, path, "intrinsics.txt")
    return make_record(info, path, image, depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="sunrgbd",
    title="SUN RGB-D",
    splits=("without_nyu", "every"),
    license="none stated",
    layout="SENSOR/SET/SCENE/{image/NAME.jpg, depth/NAME.png, intrinsics.txt}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
