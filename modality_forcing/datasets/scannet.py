"""ScanNet v2: rooms recorded by walking through them with a depth sensor on a tablet.

Layout: scans/SCENE/ (or SCENE/) as the authors' reader of .sens files unpacks it: color/N.jpg
(1296 x 968), depth/N.png (640 x 480, 16 bits, millimeters along the axis, 0 where invalid),
pose/N.txt and intrinsic/intrinsic_depth.txt; beside the scans scannetv2_train.txt,
scannetv2_val.txt and scannetv2_test.txt, one scene per line. The image is resized to its depth, and
the camera is that of the depth. If a pose is not finite, tracking was lost and depth may be of
another moment: the frame is refused, as is a scene whose camera is not finite.
Rooms that the benchmark scores (datasets/lists) are in no split, whichever scan of them it is.
Source: ScanNet/ScanNet, SensReader/python and Tasks/Benchmark.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from modality_forcing.data.intrinsics import check_principal_point
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
    glob_paths,
    make_record,
    read_split_list,
)
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.paths import is_dir


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[str]:
    lists = [f"scannetv2_{split}.txt", f"splits/scannetv2_{split}.txt"]
    source = "Tasks/Benchmark of ScanNet/ScanNet has it"
    for scene in sorted(read_split_list(root, lists, "ScanNet", source)):
        if room_of(scene) not in evaluation_rooms():
            yield from _scene_frames(root, scene, unused)


def _scene_frames(root: Path, scene: str, unused: Unused) -> Iterator[str]:
    """Yields the depth maps of a scene that have an image, relative to the root.

    There are none if the scene was not downloaded.
    """
    folders = (root / "scans" / scene, root / scene)
    folder = next((folder for folder in folders if is_dir(folder)), root / scene)
    images, maps = glob_paths(folder, "color/*.jpg"), glob_paths(folder, "depth/*.png")
    maps = [path for _, path in unused.match(images, maps)]
    # Numbers are not padded with zeros. Strings, since the whole data set has 2.5 million frames.
    for path in sorted(maps, key=lambda path: (len(path.stem), path.stem)):
        yield path.relative_to(root).as_posix()


def room_of(scene: str) -> str:
    """Returns the room of a scan: scene0011 of scene0011_01."""
    return scene.partition("_")[0]


@cache
def evaluation_rooms() -> frozenset[str]:
    """Returns the rooms with a frame that the benchmark scores."""
    return frozenset(room_of(name) for name in official_names("scannet"))


@lru_cache(maxsize=64)
def _read_intrinsics(path: Path) -> np.ndarray:
    return read_matrix(path)


def _read_frame(info: DatasetInfo, frame: str) -> Record:
    path = info.root / frame
    scene, name = path.parents[1], path.stem
    image_path = scene / "color" / f"{name}.jpg"
    read_pose(scene / "pose" / f"{name}.txt")
    image, depth = read_rgb(image_path), read_uint16_depth(path, 1000)
    (height, width), (rows, columns) = image.shape[:2], depth.shape
    # The sensor's 1296 x 968 are not quite 4 : 3.
    if abs(width * rows - height * columns) < 0.02 * width * rows:
        image = downscale_image(image, (rows, columns))
    check_same_size(image, depth, image_path, path)
    camera = scene / "intrinsic" / "intrinsic_depth.txt"
    intrinsics = check_principal_point(_read_intrinsics(camera), depth.shape, path, camera.name)
    return make_record(info, path, image, depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="scannet",
    title="ScanNet",
    splits=("train", "val", "test"),
    license="ScanNet's terms, non-commercial",
    layout="scans/SCENE/{color/N.jpg, depth/N.png, pose/N.txt, intrinsic/intrinsic_depth.txt}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
