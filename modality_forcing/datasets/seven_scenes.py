"""7-Scenes, and other sets with its file names (3DMatch): images, depth and poses of a Kinect.

Layout, in the root or up to two folders below: frame-NNNNNN.color.png, .depth.png and .pose.txt
(camera to world), for 7-Scenes in SCENE/seq-01, ... Depth is 16-bit PNG in millimeters along the
axis, 0 and 65535 where invalid. The camera is in camera-intrinsics.txt beside the frames or up to
two folders above. Sequences of 7-Scenes, in folders seq-NN, come without one: it is their depth
camera, for 640 x 480 pixels, rescaled for others. `--option camera=FX,FY,CX,CY` states any other.
Splits are those of SCENE/TrainSplit.txt and TestSplit.txt (one per line: sequence1, ...). Pitfall:
depth of 7-Scenes is not registered to its images but as seen by its own camera, a few pixels off.
Source: microsoft.com/en-us/research/project/rgb-d-dataset-7-scenes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modality_forcing.data.intrinsics import check_principal_point, pinhole
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.camera_option import vga_intrinsics
from modality_forcing.datasets.common.formats import read_matrix, read_rgb, read_uint16_depth
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    first_file,
    glob_paths,
    make_record,
    read_split_list,
)
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset

_LISTS = {"train": "TrainSplit.txt", "test": "TestSplit.txt"}
_CAMERA_FILE = "camera-intrinsics.txt"
_KINECT = pinhole(585.0, 585.0, 320.0, 240.0)


def _list_frames(root: Path, split: str, unused: Unused) -> Iterable[Path]:
    images, maps = (
        glob_paths(root, f"frame-*.{kind}.png", max_depth=2) for kind in ("color", "depth")
    )
    if split in _LISTS:
        scenes = {path.parents[1] for path in images}
        kept = {scene / name for scene in scenes for name in _sequences(scene, split)}
        images, maps = ([path for path in paths if path.parent in kept] for paths in (images, maps))
    return unused.with_depth(images, maps, _depth_path)


def _sequences(scene: Path, split: str) -> set[str]:
    """Returns the folders of a scene's sequences of a split: sequence1 is seq-01."""
    lines = read_split_list(scene, [_LISTS[split]], "7-Scenes", "it comes with each scene")
    return {f"seq-{int(number):02}" for line in lines for number in re.findall(r"\d+", line)[:1]}


def _depth_path(image: Path) -> Path:
    return image.with_name(image.name.replace(".color.", ".depth."))


def _read_intrinsics(info: DatasetInfo, path: Path, shape: tuple[int, ...]) -> np.ndarray:
    folder = path.parent.resolve()
    # As far as frames may be below the root, wherever the root is.
    folders = (folder, *folder.parents[:2])
    file = None if info.camera else first_file(each / _CAMERA_FILE for each in folders)
    if file:
        return check_principal_point(read_matrix(file), shape, path, file.name)
    known = _KINECT if re.fullmatch(r"seq-\d+", folder.name) else None
    hint = f"put a {_CAMERA_FILE} beside the frames"
    return vga_intrinsics(known, info.camera, shape, path, hint=hint)


def _read_frame(info: DatasetInfo, path: Path) -> Record:
    image = read_rgb(path)
    depth = read_uint16_depth(_depth_path(path), 1000, invalid=(0, 65535))
    intrinsics = _read_intrinsics(info, path, image.shape)
    name = path.with_name(path.name.replace(".color", ""))
    return make_record(info, name, image, depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="seven_scenes",
    title="7-Scenes",
    splits=("every", "train", "test"),
    license="non-commercial research",
    layout="SCENE/seq-01/frame-NNNNNN.{color.png,depth.png,pose.txt}",
    list_frames=_list_frames,
    read_frame=_read_frame,
    options=("camera",),
)
