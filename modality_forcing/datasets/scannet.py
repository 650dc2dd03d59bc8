"""ScanNet v2: rooms walked through with a depth sensor on a tablet.

Layout: scans/SCENE/ (or SCENE/) as the authors' reader of .sens files unpacks it: color/N.jpg (1296 x 968), depth/N.png
(640 x 480, 16 bits, millimetres along the axis, 0 where unknown), pose/N.txt and intrinsic/intrinsic_depth.txt; beside the
scans scannetv2_train.txt, scannetv2_val.txt and scannetv2_test.txt, a scene a line. The picture is brought to the raster of
its depth, and the camera is that of the depth. A frame whose pose is not finite was lost by the tracker, and its depth may
be of another moment: it is refused, as is a scene whose camera is not finite.
Rooms that evaluation scores (their list is in datasets/lists) are in no split, whichever scan of them it is.
Source: ScanNet/ScanNet, SensReader/python and Tasks/Benchmark.
"""

from __future__ import annotations

from functools import cache, lru_cache, partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.data.resize import downscale_image
from modality_forcing.datasets.common.formats import (
    check_same_size,
    read_matrix,
    read_pose,
    read_rgb,
    read_uint16_depth,
)
from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    read_split_list,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset

_TITLE = "ScanNet"


def _open(root: Path, split: str) -> LazySource[str]:
    root = require_dir(root, _TITLE)
    places = [f"scannetv2_{split}.txt", f"splits/scannetv2_{split}.txt"]
    scenes = read_split_list(root, places, _TITLE, "Tasks/Benchmark of ScanNet/ScanNet has it")
    kept = [scene for scene in sorted(scenes) if room_of(scene) not in evaluation_rooms()]
    frames = [frame for scene in kept for frame in _frames(root, scene)]
    layout = "scans/SCENE/{color/N.jpg, depth/N.png, pose/N.txt, intrinsic/intrinsic_depth.txt}"
    return LazySource(
        require_nonempty(frames, root, f"{_TITLE}'s {split} split", layout),
        partial(_read, DatasetInfo("scannet", "metric", root)),
    )


def _frames(root: Path, scene: str) -> list[str]:
    """The depth maps of a scene that have a picture, below the root; none where the scene is not here."""
    folder = next(
        (place for place in (root / "scans" / scene, root / scene) if place.is_dir()), None
    )
    if folder is None:
        return []
    pictures = {path.stem for path in glob_paths(folder, "color/*.jpg")}
    depths = [path for path in glob_paths(folder, "depth/*.png") if path.stem in pictures]
    # Without zeros before it, 10 sorts before 2. Strings: a whole set has 2.5 million frames.
    return [
        path.relative_to(root).as_posix()
        for path in sorted(depths, key=lambda path: (len(path.stem), path.stem))
    ]


def room_of(scene: str) -> str:
    """Returns the room of a scan: scene0011 of scene0011_01."""
    return scene.partition("_")[0]


@cache
def evaluation_rooms() -> frozenset[str]:
    """Returns the rooms of which evaluation scores a frame."""
    return frozenset(room_of(name) for name in official_names("scannet"))


@lru_cache(maxsize=64)
def _camera(path: Path) -> np.ndarray:
    return read_matrix(path)


def _read(info: DatasetInfo, frame: str) -> Record:
    path = info.root / frame
    scene, name = path.parents[1], path.stem
    picture = scene / "color" / f"{name}.jpg"
    read_pose(scene / "pose" / f"{name}.txt")
    image, depth = read_rgb(picture), read_uint16_depth(path, 1000)
    (height, width), (rows, columns) = image.shape[:2], depth.shape
    if (
        abs(width * rows - height * columns) < 0.02 * width * rows
    ):  # the sensor's 1296 x 968 are not quite 4 : 3
        image = downscale_image(image, (rows, columns))
    check_same_size(image, depth, picture, path)
    intrinsics = _camera(scene / "intrinsic" / "intrinsic_depth.txt")
    return make_record(info, path, image, depth, intrinsics=intrinsics)


DATASET = Dataset(
    "scannet", _TITLE, "metric", ("train", "val", "test"), "ScanNet's terms, non-commercial", _open
)
