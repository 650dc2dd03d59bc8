"""Taskonomy: views of scanned buildings, rendered from their meshes and panoramas.

Layout, where TASK is rgb, depth_zbuffer or point_info: TASK/BUILDING/, TASK/taskonomy/BUILDING/
(omnidata-tools) or BUILDING/TASK/, each with point_P_view_V_domain_TASK.png (point_info: .json).
depth_zbuffer is depth along the axis (depth_euclidean is along the ray), 16-bit PNG, 1/512 meters,
0 and 65535 where the mesh has a hole. Views are square. Their field of view is in point_info, if it
was downloaded. The split is in splits_taskonomy/train_val_test_fullplus.csv (else full, medium,
tiny): id, train, val, test, 1 for yes.
Source: StanfordVL/taskonomy, data/README.md and data/assets/splits_taskonomy.zip.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modality_forcing.data.intrinsics import pinhole, rescale_intrinsics
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import (
    read_json,
    read_rgb,
    read_uint16_depth,
    wrap_parse_errors,
)
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    first_file,
    glob_paths,
    make_record,
    read_csv,
)
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError
from modality_forcing.paths import is_file
from modality_forcing.text_io import parse_number

_FOLDERS = ("{task}/{building}", "{task}/taskonomy/{building}", "{building}/{task}")
_AGAIN = "unpack it again"
_SIDE = 512  # pixels of the original views
_Frame = tuple[str, str, str]  # pattern of the folder, building, view


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[_Frame]:
    names = [f"train_val_test_{size}.csv" for size in ("fullplus", "full", "medium", "tiny")]
    lists = [root / folder / name for name in names for folder in ("splits_taskonomy", "")]
    source = "it is in splits_taskonomy.zip of StanfordVL/taskonomy, data/assets"
    rows = read_csv(first_file(lists) or lists[0], ("id", split), source)
    chosen = (row["id"] for row in rows if row[split].strip() in ("1", "True", "true"))
    for building in sorted(chosen):
        yield from _list_views(root, building, unused)


def _list_views(root: Path, building: str, unused: Unused) -> list[_Frame]:
    """Returns the views of a building with image and depth, none if it was not downloaded."""
    for folder in _FOLDERS:
        images, maps = (
            glob_paths(
                root / folder.format(task=task, building=building), f"point_*_domain_{task}.png"
            )
            for task in ("rgb", "depth_zbuffer")
        )
        if pairs := unused.match(images, maps, _view):
            return [(folder, building, view) for view in sorted(_view(path) for path, _ in pairs)]
    return []


def _view(path: Path) -> str:
    return path.name.partition("_domain_")[0]


def _read_intrinsics(path: Path, image: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Returns the intrinsics by the field of view in a point_info, None without that file."""
    if not is_file(path):
        return None
    loaded = read_json(path)
    with wrap_parse_errors(path, "states no field_of_view_rads", _AGAIN):
        angle = parse_number(loaded["field_of_view_rads"])
    if not 0 < angle < math.pi:
        raise UserError(f"states a field of view of {angle:g}", where=path, hint=_AGAIN)
    focal, center = _SIDE / 2 / math.tan(angle / 2), (_SIDE - 1) / 2
    intrinsics = pinhole(focal, focal, center, center)
    return rescale_intrinsics(intrinsics, (_SIDE, _SIDE), shape, image)


def _read_frame(info: DatasetInfo, frame: _Frame) -> Record:
    folder, building, view = frame

    def path(task: str, suffix: str) -> Path:
        task_folder = info.root / folder.format(task=task, building=building)
        return task_folder / f"{view}_domain_{task}.{suffix}"

    image_path = path("rgb", "png")
    depth = read_uint16_depth(path("depth_zbuffer", "png"), 512, invalid=(0, 65535))
    intrinsics = _read_intrinsics(path("point_info", "json"), image_path, depth.shape)
    return make_record(info, image_path, read_rgb(image_path), depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="taskonomy",
    title="Taskonomy",
    splits=("train", "val", "test"),
    license="non-commercial research",
    layout="rgb/BUILDING/point_P_view_V_domain_rgb.png and the same of depth_zbuffer",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
