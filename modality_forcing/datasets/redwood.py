"""Redwood's rooms, and other recordings as Open3D's reconstruction system lays them out: color/ and depth/ side by side.

Layout, in the folder given or in folders of it: color/NAME.jpg or .png and depth/NAME.png, 16 bits in millimetres along the
axis, 0 where unknown. The camera stands in camera_primesense.json or intrinsic.json, beside these folders or above them:
its intrinsic_matrix is a list of nine, column by column. Without such a file it is 525, 525, 319.5, 239.5.
Source: redwood-data.org/indoor, isl-org/Open3D.
"""

from __future__ import annotations

import json
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
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "Redwood"
_CAMERAS = ("camera_primesense.json", "intrinsic.json", "camera_intrinsic.json")
_PRIMESENSE = pinhole(525.0, 525.0, 319.5, 239.5)


def _open(root: Path, split: str) -> LazySource[Path]:
    root = require_dir(root, _TITLE)
    pictures = [
        path
        for pattern in ("color", "*/color")
        for path in glob_paths(root, f"{pattern}/*")
        if path.suffix in (".jpg", ".png") and _depth(path).is_file()
    ]
    layout = "SCENE/{color/NAME.jpg, depth/NAME.png}"
    return LazySource(
        require_nonempty(pictures, root, _TITLE, layout),
        partial(_read, DatasetInfo("redwood", "metric", root)),
    )


def _depth(picture: Path) -> Path:
    return picture.parents[1] / "depth" / f"{picture.stem}.png"


def _camera(scene: Path, root: Path) -> np.ndarray:
    path = next(
        (place / name for place in (scene, root) for name in _CAMERAS if (place / name).is_file()),
        None,
    )
    if path is None:
        return _PRIMESENSE
    try:
        return np.array(json.loads(read_text(path))["intrinsic_matrix"], np.float64).reshape(3, 3).T
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        hint = "write the JSON that Open3D writes, or remove it"
        raise UserError(
            "holds no intrinsic_matrix of nine numbers", where=path, hint=hint
        ) from error


def _read(info: DatasetInfo, picture: Path) -> Record:
    image, depth = read_rgb(picture), read_uint16_depth(_depth(picture), 1000)
    return make_record(
        info, picture, image, depth, intrinsics=_camera(picture.parents[1], info.root)
    )


DATASET = Dataset("redwood", _TITLE, "metric", ("train",), "CC BY 3.0", _open)
