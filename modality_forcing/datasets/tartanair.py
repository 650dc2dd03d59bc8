"""TartanAir: rendered flights through towns, woods and rooms; version 2 and version 1.

Layouts, in the root or up to three folders below (ENVIRONMENT/Data_easy/P000 or
ENVIRONMENT/Easy/P000):
  version 2: image_CAMERA/NNNNNN_CAMERA.png and depth_CAMERA/NNNNNN_CAMERA_depth.png, floats packed
    into color and alpha (`read_packed_floats`), 640 x 640 pixels. Of its cameras, those that look
    ahead, back and aside are read: lcam_front, ...;
  version 1: image_left/NNNNNN_left.png and depth_left/NNNNNN_left_depth.npy, 640 x 480 pixels, left
    and right.
Depth is in meters along the axis. No value marks invalid pixels: the sky and missing surfaces are
very far but finite, so depth of 1000 m and more is invalid. Both versions have a focal length of
320 pixels at these sizes, rescaled for others, and the principal point in the middle of the image,
which the authors write as half of its size, since they count pixels from their corner. There is no
official split. Archives hold the "._" twins that macOS writes.
Source: castacks/tartanairpy, docs/modalities.rst; theairlab.org.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from modality_forcing.data.intrinsics import pinhole, rescale_intrinsics
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_array, read_packed_floats, read_rgb
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset

FAR = 1000.0
_FOCAL = 320.0
_SIZES = {"npy": (480, 640), "png": (640, 640)}  # (h, w) by the kind of depth file
_CAMERA = re.compile(r"image_(left|right|[lr]cam_(?:front|back|left|right))")


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[tuple[Path, Path]]:
    folders = glob_paths(root, "image_*", max_depth=3)
    of_depth = (
        path.with_name(path.name.replace("depth", "image", 1))
        for path in glob_paths(root, "depth_*", max_depth=3)
    )
    for folder in dict.fromkeys((*folders, *of_depth)):
        name = _CAMERA.fullmatch(folder.name)
        if not name:
            continue
        suffix = "npy" if name[1] in ("left", "right") else "png"
        maps = folder.with_name(f"depth_{name[1]}")
        images, depths = glob_paths(folder, "*.png"), glob_paths(maps, f"*_depth.{suffix}")
        yield from unused.match(images, depths, lambda path: path.stem.removesuffix("_depth"))


def _read_frame(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    path, depth_path = frame
    image = read_rgb(path)
    depth = (read_array if depth_path.suffix == ".npy" else read_packed_floats)(depth_path)
    height, width = _SIZES[depth_path.suffix[1:]]
    intrinsics = pinhole(_FOCAL, _FOCAL, (width - 1) / 2, (height - 1) / 2)
    intrinsics = rescale_intrinsics(intrinsics, (height, width), image.shape, path)
    return make_record(info, path, image, depth, valid=depth < FAR, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="tartanair",
    title="TartanAir",
    splits=("train",),
    license="CC BY 4.0",
    layout="ENVIRONMENT/Data_easy/P000/{image_lcam_front, depth_lcam_front}, "
    "or Easy/P000/{image_left, depth_left}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
