"""BlendedMVS, BlendedMVS+ and BlendedMVS++: rendered reconstructions, blended with photographs.

Layout: PROJECT/blended_images/NNNNNNNN.jpg (_masked files are skipped),
rendered_depth_maps/NNNNNNNN.pfm and cams/NNNNNNNN_cam.txt; beside the projects, or in
project_lists/, BlendedMVG_training.txt, BlendedMVS_training.txt or training_list.txt, and
validation_list.txt, one project per line. Depth is along the axis in the scale of a reconstruction,
which differs between projects ("sfm"), 0 where the mesh has a hole. Empty maps are refused, and so
are cameras whose nearest depth is not positive, since they do not match their image.
Source: YoYo000/BlendedMVS, README; YoYo000/MVSNet for the camera format.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modality_forcing.data.intrinsics import check_principal_point
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import (
    read_pfm,
    read_rgb,
    read_text,
    wrap_parse_errors,
)
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    glob_paths,
    make_record,
    read_split_list,
)
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError

_LISTS = {
    "train": ("BlendedMVG_training.txt", "BlendedMVS_training.txt", "training_list.txt"),
    "val": ("validation_list.txt",),
}


def _list_frames(root: Path, split: str, unused: Unused) -> Iterable[Path]:
    lists = [f"{folder}{name}" for name in _LISTS[split] for folder in ("", "project_lists/")]
    projects = read_split_list(root, lists, "BlendedMVS", "YoYo000/BlendedMVS has it")
    for project in sorted(projects):
        images = glob_paths(root / project, "blended_images/*.jpg")
        images = (path for path in images if not path.stem.endswith("_masked"))
        maps = glob_paths(root / project, "rendered_depth_maps/*.pfm")
        yield from unused.with_depth(images, maps, _depth_path)


def _depth_path(image: Path) -> Path:
    return image.parents[1] / "rendered_depth_maps" / f"{image.stem}.pfm"


def _read_camera(path: Path) -> tuple[np.ndarray, float]:
    """Returns intrinsics [3 3] and nearest depth of an MVSNet camera.

    The file holds a 4 x 4 pose, the 3 x 3 intrinsics and the depth range.
    """
    words = read_text(path).split()
    with wrap_parse_errors(path, "is not a camera as MVSNet writes it", "unpack the project again"):
        at = words.index("intrinsic") + 1
        return np.array(words[at : at + 9], np.float64).reshape(3, 3), float(words[at + 9])


def _read_frame(info: DatasetInfo, path: Path) -> Record:
    camera_path = path.parents[1] / "cams" / f"{path.stem}_cam.txt"
    intrinsics, nearest = _read_camera(camera_path)
    if not nearest > 0:
        what = f"its nearest depth is {nearest:g}"
        raise UserError(what, where=camera_path, hint="leave the frame out")
    image, depth = read_rgb(path), read_pfm(_depth_path(path))
    check_principal_point(intrinsics, image.shape, path, camera_path.name)
    return make_record(info, path, image, depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="blendedmvs",
    title="BlendedMVS",
    unit="sfm",
    splits=("train", "val"),
    license="CC BY 4.0",
    layout="PROJECT/{blended_images/N.jpg, rendered_depth_maps/N.pfm, cams/N_cam.txt}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
