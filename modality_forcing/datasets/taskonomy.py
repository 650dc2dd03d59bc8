"""Taskonomy: views of scanned buildings, rendered from their meshes and from the scanner's panoramas.

Layout, TASK being rgb, depth_zbuffer and point_info: TASK/BUILDING/, TASK/taskonomy/BUILDING/ (omnidata-tools) or
BUILDING/TASK/, in it point_P_view_V_domain_TASK.png (point_info: .json). depth_zbuffer is depth along the axis (not
depth_euclidean, which is along the ray), 16-bit PNG, 1/512 metres, 0 and 65535 where the mesh has a hole. Views are
square; their field of view is in point_info, where that was downloaded. The split stands in
splits_taskonomy/train_val_test_fullplus.csv (full, medium, tiny where that is absent): id, train, val, test, 1 for yes.
Source: StanfordVL/taskonomy, data/README.md and data/assets/splits_taskonomy.zip.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_rgb, read_text, read_uint16_depth
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    pinhole,
    read_csv,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "Taskonomy"
_PLACES = ("{task}/{building}", "{task}/taskonomy/{building}", "{building}/{task}")


def _open(root: Path, split: str) -> LazySource[tuple[str, str, str]]:
    root = require_dir(root, _TITLE)
    names = [f"train_val_test_{part}.csv" for part in ("fullplus", "full", "medium", "tiny")]
    places = [root / folder / name for name in names for folder in ("splits_taskonomy", "")]
    path = next((place for place in places if place.is_file()), places[0])
    rows = read_csv(
        path, ("id", split), "it is in splits_taskonomy.zip of StanfordVL/taskonomy, data/assets"
    )
    buildings = sorted(row["id"] for row in rows if row[split].strip() in ("1", "True", "true"))
    views = [view for building in buildings for view in _views(root, building)]
    layout = "rgb/BUILDING/point_P_view_V_domain_rgb.png and the same of depth_zbuffer"
    return LazySource(
        require_nonempty(views, root, f"{_TITLE}'s {split} split", layout),
        partial(_read, DatasetInfo("taskonomy", "metric", root)),
    )


def _views(root: Path, building: str) -> list[tuple[str, str, str]]:
    """Place, building and view of every picture of a building that has depth; none where it is not here."""
    for place in _PLACES:
        pictures, depths = (
            {
                path.name.partition("_domain_")[0]
                for path in glob_paths(root / place.format(task=task, building=building), pattern)
            }
            for task, pattern in (
                ("rgb", "point_*_domain_rgb.png"),
                ("depth_zbuffer", "point_*_domain_depth_zbuffer.png"),
            )
        )
        if pictures & depths:
            return [(place, building, view) for view in sorted(pictures & depths)]
    return []


def _camera(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """The intrinsics by the field of view that a point_info tells, or None without that file."""
    if not path.is_file():
        return None
    try:
        angle = float(json.loads(read_text(path))["field_of_view_rads"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            "does not tell field_of_view_rads", where=path, hint="unpack it again"
        ) from error
    if not 0 < angle < math.pi:
        raise UserError(f"tells a field of view of {angle:g}", where=path, hint="unpack it again")
    height, width = size
    focal = width / 2 / math.tan(angle / 2)
    return pinhole(focal, focal, (width - 1) / 2, (height - 1) / 2)


def _read(info: DatasetInfo, frame: tuple[str, str, str]) -> Record:
    place, building, view = frame

    def path(task: str, ending: str = "png") -> Path:
        return (
            info.root
            / place.format(task=task, building=building)
            / f"{view}_domain_{task}.{ending}"
        )

    depth = read_uint16_depth(path("depth_zbuffer"), 512, unknown=(0, 65535))
    camera = _camera(path("point_info", "json"), depth.shape)
    return make_record(info, path("rgb"), read_rgb(path("rgb")), depth, intrinsics=camera)


DATASET = Dataset(
    "taskonomy", _TITLE, "metric", ("train", "val", "test"), "non-commercial research", _open
)
