"""SUN RGB-D: four depth cameras in rooms, their raw depth.

Layout: SENSOR/SET/SCENE/ (deeper for some sets), each with image/NAME.jpg, depth/NAME.png and intrinsics.txt; the filled
depth_bfx/ is not read. Depth is 16-bit PNG, millimetres along the axis with their bits rotated (`read_sunrgbd_depth`), 0
where unknown. intrinsics.txt holds nine numbers, for pixels counted from 1.
Trap: kv1/NYUdata are the labelled frames of NYUv2, 654 of which evaluation scores: the split "without_nyu" leaves them out.
The official split stands in a MATLAB file and is not read. Source: rgbd.cs.princeton.edu, toolbox read3dPoints.m.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_rgb, read_sunrgbd_depth, read_text
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    parts_below,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "SUN RGB-D"


def _open(root: Path, split: str) -> LazySource[tuple[Path, Path]]:
    root = require_dir(root, _TITLE)
    frames = []
    for camera in glob_paths(root, "**/intrinsics.txt"):
        scene = camera.parent
        pictures, depths = glob_paths(scene, "image/*.jpg"), glob_paths(scene, "depth/*.png")
        if len(pictures) == len(depths) == 1 and (
            split == "every" or "NYUdata" not in parts_below(scene, root)
        ):
            frames.append((pictures[0], depths[0]))
    layout = "SENSOR/SET/SCENE/{image/NAME.jpg, depth/NAME.png, intrinsics.txt}"
    return LazySource(
        require_nonempty(frames, root, _TITLE, layout),
        partial(_read, DatasetInfo("sunrgbd", "metric", root)),
    )


def _camera(path: Path) -> np.ndarray:
    try:
        matrix = np.array(read_text(path, "intrinsics").split(), np.float64).reshape(3, 3)
    except ValueError as error:
        raise UserError("is not nine numbers", where=path, hint="unpack it again") from error
    matrix[:2, 2] -= 1
    return matrix


def _read(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    picture, depth = frame
    intrinsics = _camera(picture.parents[1] / "intrinsics.txt")
    return make_record(
        info, picture, read_rgb(picture), read_sunrgbd_depth(depth), intrinsics=intrinsics
    )


DATASET = Dataset("sunrgbd", _TITLE, "metric", ("without_nyu", "every"), "none stated", _open)
