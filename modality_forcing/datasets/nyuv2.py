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

import re
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
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.paths import is_dir

BORDER = 8
_INTRINSICS = pinhole(
    fx=518.85790117450188,
    fy=519.46961112127485,
    cx=325.58244941119034 - BORDER,
    cy=253.73616633400465 - BORDER,
)


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[tuple[Path, Path]]:
    images, maps = _list_files(root, split)
    pairs = [(image, depth) for image in images if (depth := _depth_path(image))]
    yield from pairs
    # Both kinds of depth may be there.
    first, frames = {depth for _, depth in pairs}, {_frame_key(image) for image in images}
    maps = [path for path in maps if path in first or _frame_key(path) not in frames]
    unused.add_partners(images, maps, pairs)


def _list_files(root: Path, split: str) -> tuple[list[Path], list[Path]]:
    """Returns the images and the depth maps of a split."""
    for archive in (root, root / "nyuv2"):
        if is_dir(archive / "train") or is_dir(archive / "test"):
            images, maps = (
                glob_paths(archive / split, f"*/{kind}_*.png") for kind in ("rgb", "depth")
            )
            return images, maps
    scored = set(official_names("nyuv2"))

    def of_split(pattern: str) -> list[Path]:
        paths = glob_paths(root, pattern, max_depth=2)
        names = (f"test/{path.parent.name}/rgb_{_number(path)}" for path in paths)
        return [p for p, name in zip(paths, names, strict=True) if (name in scored) == is_test]

    is_test = split == "test"
    return of_split("rgb_*.*"), [*of_split("depth_*.png"), *of_split("sync_depth_*.png")]


def _number(path: Path) -> str:
    return re.sub("^(rgb|sync_depth|depth)_", "", path.stem)


def _frame_key(path: Path) -> tuple[Path, str]:
    """Returns the folder and the number of a frame."""
    has_own = path.parent.name in ("rgb", "depth")
    return path.parents[1] if has_own else path.parent, _number(path)


def _depth_path(image: Path) -> Path | None:
    number = _number(image)
    folders = [image.parent]
    if image.parent.name == "rgb":
        folders.append(image.parents[1] / "depth")
    kinds = ("depth", "sync_depth")
    return first_file(folder / f"{kind}_{number}.png" for folder in folders for kind in kinds)


def _read_frame(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    path, depth_path = frame
    image, depth = read_rgb(path), read_uint16_depth(depth_path, 1000)
    check_same_size(image, depth, path, depth_path)
    check_camera_size(depth.shape, (480, 640), depth_path)
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
