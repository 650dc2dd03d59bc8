"""TartanAir: rendered flights through towns, woods and rooms; version 2 and version 1.

Layouts, in the folder given or up to three folders below (ENVIRONMENT/Data_easy/P000 or ENVIRONMENT/Easy/P000):
  version 2: image_CAMERA/NNNNNN_CAMERA.png and depth_CAMERA/NNNNNN_CAMERA_depth.png, floats packed into colour and alpha
    (`read_packed_floats`), 640 x 640 pixels; of its cameras those that look ahead, back and aside are read, lcam_front, ...;
  version 1: image_left/NNNNNN_left.png and depth_left/NNNNNN_left_depth.npy, 640 x 480 pixels; left and right.
Depth is metres along the axis. There is no value for unknown: the sky and what has no surface are very far but finite, so
from 1000 m on nothing is known. Both have a focal length of 320 pixels; the axis goes through the middle of the picture,
which its authors write as half its size, counting pixels from their corner. There is no official split.
Archives hold the "._" twins that macOS makes. Source: castacks/tartanairpy, docs/modalities.rst; theairlab.org.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_array, read_packed_floats, read_rgb
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    pinhole,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset

FAR = 1000.0
_TITLE = "TartanAir"
_FOCAL = 320.0
_CAMERA = re.compile(r"image_(left|right|[lr]cam_(?:front|back|left|right))")


def _open(root: Path, split: str) -> LazySource[tuple[Path, Path]]:
    root = require_dir(root, _TITLE)
    folders = [
        path
        for above in ("", "*/", "*/*/", "*/*/*/")
        for path in glob_paths(root, f"{above}image_*")
    ]
    frames = [
        pair
        for folder in folders
        if (name := _CAMERA.fullmatch(folder.name))
        for pair in _pairs(folder, name[1])
    ]
    layout = "ENVIRONMENT/Data_easy/P000/{image_lcam_front, depth_lcam_front}, or Easy/P000/{image_left, depth_left}"
    return LazySource(
        require_nonempty(frames, root, _TITLE, layout),
        partial(_read, DatasetInfo("tartanair", "metric", root)),
    )


def _pairs(folder: Path, camera: str) -> list[tuple[Path, Path]]:
    maps = folder.with_name(f"depth_{camera}")
    ending = "npy" if camera in ("left", "right") else "png"
    pairs = [(path, maps / f"{path.stem}_depth.{ending}") for path in glob_paths(folder, "*.png")]
    here = set(glob_paths(maps, f"*_depth.{ending}"))
    return [(picture, depth) for picture, depth in pairs if depth in here]


def _read(info: DatasetInfo, pair: tuple[Path, Path]) -> Record:
    picture, path = pair
    image = read_rgb(picture)
    depth = read_array(path) if path.suffix == ".npy" else read_packed_floats(path)
    height, width = image.shape[:2]
    camera = pinhole(_FOCAL, _FOCAL, (width - 1) / 2, (height - 1) / 2)
    return make_record(info, picture, image, depth, depth < FAR, camera)


DATASET = Dataset("tartanair", _TITLE, "metric", ("train",), "CC BY 4.0", _open)
