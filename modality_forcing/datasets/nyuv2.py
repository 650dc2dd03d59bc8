"""NYUv2: a Kinect in rooms, the registered depth with its holes; filled depth is never read.

Layouts, in the root or, for the first, in its folder nyuv2:
  SPLIT/SCENE/rgb_NNNN.png and depth_NNNN.png (filled_NNNN.png beside): Marigold's archive of the
    labeled frames, 795 to train and 654 to test;
  SCENE/rgb_NNNNN.jpg and sync_depth_NNNNN.png: the synchronized frames for monocular depth; or the
    two kinds in folders rgb/ and depth/ of their own. These have no split: "train" has all of them
    but the 654 test frames by name, so that a root within the archive's test/ is not trained on.
Depth is 16-bit PNG in millimeters along the axis, 0 where invalid. Images have a white border of up
to 8 pixels, outside of all depth, which is cut off: 464 x 624 pixels of 480 x 640 remain.
Intrinsics are those of the color camera in the toolbox.
Source: cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html; prs-eth/Marigold, src/dataset/nyu_dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import (
    check_camera_size,
    check_same_size,
    read_rgb,
    read_uint16_depth,
)
from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.datasets.common.lazy import DatasetInfo, first_file, glob_paths, make_record
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.paths import is_dir

BORDER = 8
_INTRINSICS = pinhole(
    fx=518.85790117450188,
    fy=519.46961112127485,
    cx=325.58244941119034 - BORDER,
    cy=253.73616633400465 - BORDER,
)


def _list_frames(root: Path, split: str) -> Iterator[tuple[Path, Path]]:
    for image in _list_images(root, split):
        if depth := _depth_path(image):
            yield image, depth


def _list_images(root: Path, split: str) -> list[Path]:
    for archive in (root, root / "nyuv2"):
        if is_dir(archive / "train") or is_dir(archive / "test"):
            return glob_paths(archive / split, "*/rgb_*.png")
    images = glob_paths(root, "rgb_*.*", max_depth=2)
    scored = set(official_names("nyuv2"))
    is_scored = (f"test/{path.parent.name}/{path.stem}" in scored for path in images)
    return [path for path, one in zip(images, is_scored, strict=True) if one == (split == "test")]


def _depth_path(image: Path) -> Path | None:
    number = image.stem.removeprefix("rgb_")
    folders = [image.parent]
    if image.parent.name == "rgb":
        folders.append(image.parents[1] / "depth")
    kinds = ("depth", "sync_depth")
    return first_file(folder / f"{kind}_{number}.png" for folder in folders for kind in kinds)


def _read_frame(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    path, depth_path = frame
    image, depth = read_rgb(path), read_uint16_depth(depth_path, 1000)
    check_same_size(image, depth, path, depth_path)
    check_camera_size(depth, (480, 640), depth_path)
    inner = slice(BORDER, -BORDER)
    image, depth = image[inner, inner], depth[inner, inner]
    return make_record(info, path, image, depth, intrinsics=_INTRINSICS)


DATASET = FrameDataset(
    name="nyuv2",
    title="NYUv2",
    splits=("train", "test"),
    license="none stated",
    layout="SPLIT/SCENE/{rgb_NNNN.png, depth_NNNN.png}, "
    "or for train SCENE/{rgb_N.jpg, sync_depth_N.png}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
