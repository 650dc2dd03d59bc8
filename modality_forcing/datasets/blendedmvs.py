"""BlendedMVS, BlendedMVS+ and BlendedMVS++: reconstructed places and things, rendered and blended with their photographs.

Layout: PROJECT/blended_images/NNNNNNNN.jpg (those named _masked are passed over), rendered_depth_maps/NNNNNNNN.pfm and
cams/NNNNNNNN_cam.txt; beside the projects, or in project_lists/, BlendedMVG_training.txt, BlendedMVS_training.txt or
training_list.txt, and validation_list.txt, a project a line. Depth is along the axis in the scale of a reconstruction,
which differs with the project ("sfm"); 0 where the mesh has a hole. Maps may be empty, and cameras whose nearest depth
is not positive do not go with their picture: both are refused when read.
Source: YoYo000/BlendedMVS, README; YoYo000/MVSNet for the format of cameras.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_pfm, read_rgb, read_text
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
from modality_forcing.errors import UserError

_TITLE = "BlendedMVS"
_LISTS = {
    "train": ("BlendedMVG_training.txt", "BlendedMVS_training.txt", "training_list.txt"),
    "val": ("validation_list.txt",),
}


def _open(root: Path, split: str) -> LazySource[Path]:
    root = require_dir(root, _TITLE)
    places = [f"{folder}{name}" for name in _LISTS[split] for folder in ("", "project_lists/")]
    projects = read_split_list(root, places, _TITLE, "YoYo000/BlendedMVS has it")
    pictures = [
        path
        for project in sorted(projects)
        for path in glob_paths(root / project, "blended_images/*.jpg")
    ]
    pictures = [path for path in pictures if _depth(path).is_file()]  # none of a masked one
    layout = "PROJECT/{blended_images/N.jpg, rendered_depth_maps/N.pfm, cams/N_cam.txt}"
    return LazySource(
        require_nonempty(pictures, root, f"{_TITLE}'s {split} split", layout),
        partial(_read, DatasetInfo("blendedmvs", "sfm", root)),
    )


def _depth(picture: Path) -> Path:
    return picture.parents[1] / "rendered_depth_maps" / f"{picture.stem}.pfm"


def _camera(path: Path) -> tuple[np.ndarray, float]:
    """The [3 3] intrinsics and the nearest depth of an MVSNet camera: 4 x 4 numbers, 3 x 3 numbers, then the range."""
    words = read_text(path, "a camera").split()
    try:
        at = words.index("intrinsic") + 1
        return np.array(words[at : at + 9], np.float64).reshape(3, 3), float(words[at + 9])
    except (ValueError, IndexError) as error:
        raise UserError(
            "is not a camera as MVSNet writes it", where=path, hint="unpack the project again"
        ) from error


def _read(info: DatasetInfo, picture: Path) -> Record:
    path = picture.parents[1] / "cams" / f"{picture.stem}_cam.txt"
    intrinsics, nearest = _camera(path)
    if not nearest > 0:
        raise UserError(f"its nearest depth is {nearest:g}", where=path, hint="leave the frame out")
    return make_record(
        info, picture, read_rgb(picture), read_pfm(_depth(picture)), intrinsics=intrinsics
    )


DATASET = Dataset("blendedmvs", _TITLE, "sfm", ("train", "val"), "CC BY 4.0", _open)
