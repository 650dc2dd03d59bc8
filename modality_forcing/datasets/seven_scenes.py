"""7-Scenes, and other sets whose frames are named like its own (3DMatch): a Kinect's pictures, depth and poses.

Layout, in the folder given or up to two folders below: frame-NNNNNN.color.png, .depth.png and .pose.txt (camera to world),
for 7-Scenes in SCENE/seq-01, ... Depth is 16-bit PNG in millimetres along the axis, 0 and 65535 where unknown. The camera
stands in camera-intrinsics.txt beside the frames or above them; without one it is the depth camera of 7-Scenes. Splits
are those of SCENE/TrainSplit.txt and TestSplit.txt (a line each: sequence1, ...). Trap: 7-Scenes's depth is not registered
to its pictures, but as its own camera saw it, which is a few pixels off.
Source: microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_matrix, read_rgb, read_uint16_depth
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    pinhole,
    read_split_list,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset

_TITLE = "7-Scenes"
_LISTS = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
_KINECT = pinhole(585.0, 585.0, 320.0, 240.0)


def _open(root: Path, split: str) -> LazySource[Path]:
    root = require_dir(root, _TITLE)
    frames = [
        path
        for above in ("", "*/", "*/*/")
        for path in glob_paths(root, f"{above}frame-*.color.png")
    ]
    if split in _LISTS:
        scenes = {path.parents[1] for path in frames}
        kept = {scene / name for scene in scenes for name in _sequences(scene, split)}
        frames = [path for path in frames if path.parent in kept]
    frames = [path for path in frames if _depth(path).is_file()]
    layout = "SCENE/seq-01/frame-NNNNNN.{color.png,depth.png,pose.txt}"
    return LazySource(
        require_nonempty(frames, root, _TITLE, layout),
        partial(_read, DatasetInfo("seven_scenes", "metric", root)),
    )


def _sequences(scene: Path, split: str) -> set[str]:
    """The folders of a scene's sequences that belong to a split: sequence1 is seq-01."""
    lines = read_split_list(scene, [_LISTS[split]], _TITLE, "it comes with each scene")
    return {f"seq-{int(number):02}" for line in lines for number in re.findall(r"\d+", line)[:1]}


def _depth(picture: Path) -> Path:
    return picture.with_name(picture.name.replace(".color.", ".depth."))


def camera_of(folder: Path, root: Path) -> np.ndarray:
    """Returns the [3 3] intrinsics of camera-intrinsics.txt in a folder or the nearest one above it, down from `root`."""
    for place in (folder, *folder.parents):
        if (place / "camera-intrinsics.txt").is_file():
            return read_matrix(place / "camera-intrinsics.txt")
        if place == root:
            break
    return _KINECT


def _read(info: DatasetInfo, picture: Path) -> Record:
    depth = read_uint16_depth(_depth(picture), 1000, unknown=(0, 65535))
    camera = camera_of(picture.parent, info.root)
    return make_record(
        info,
        picture.with_name(picture.name.replace(".color", "")),
        read_rgb(picture),
        depth,
        intrinsics=camera,
    )


DATASET = Dataset(
    "seven_scenes", _TITLE, "metric", ("every", "train", "test"), "non-commercial research", _open
)
