"""KITTI's depth prediction benchmark: eleven scans gathered in one picture and cleaned by stereo, about a fifth of the pixels.

Layouts, told apart by what lies in the folder given:
  benchmark: {train, val}/2011_09_26_drive_0001_sync/proj_depth/groundtruth/{image_02, image_03}/NNNNNNNNNN.png, with the
             pictures of KITTI raw at 2011_09_26/2011_09_26_drive_0001_sync/{image_02, image_03}/data/NNNNNNNNNN.png in the
             same folder, in its raw/, or within the drives of train and val. Splits `train`, without the drives that Eigen's
             test split is from, and `val`.
  flat:      rgb/NAME.png and depth/NAME.png, the split `train`.
Depth is 16-bit PNG, 1/256 metres along the axis of the rectified camera, 0 unknown; nothing in the upper third.
The camera is that of 2011_09_26/calib_cam_to_cam.txt where it is there and fits the picture's size, else that of the one day
whose pictures have that size: lists of cameras that come with copies of the set name other days' at times.
Source: cvlibs.net/datasets/kitti/eval_depth.php, the devkit's readme; J. Uhrig et al., 3DV 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_rgb, read_uint16_depth
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    pinhole,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.kitti_raw import DAYS, TEST_DRIVES, check_camera, read_calibration
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "KITTI depth"
_LAYOUT = "{train,val}/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02 with KITTI raw's 2011_09_26 beside it"


def _open(root: Path, split: str) -> LazySource[tuple[Path, Path]]:
    root = require_dir(root, _TITLE)
    frames = [*_benchmark(root, split), *(_flat(root) if split == "train" else [])]
    kept = require_nonempty(frames, root, f"{_TITLE}'s split {split} with its picture", _LAYOUT)
    return LazySource(kept, partial(_read, DatasetInfo("kitti_depth", "metric", root)))


def _benchmark(root: Path, split: str) -> Iterator[tuple[Path, Path]]:
    for camera in glob_paths(root / split, "*_sync/proj_depth/groundtruth/image_0[23]"):
        drive, name = camera.parents[2], camera.name
        if split == "train" and drive.name in TEST_DRIVES:
            continue
        places = [
            root / drive.name[:10] / drive.name,
            root / "raw" / drive.name[:10] / drive.name,
            drive,
        ]
        folder = next(
            (place / name / "data" for place in places if (place / name / "data").is_dir()), None
        )
        if folder:
            pictures = {path.name for path in glob_paths(folder, "*.png")}
            yield from (
                (folder / path.name, path)
                for path in glob_paths(camera, "*.png")
                if path.name in pictures
            )


def _flat(root: Path) -> list[tuple[Path, Path]]:
    pictures = {path.name for path in glob_paths(root, "rgb/*.png")}
    return [
        (root / "rgb" / path.name, path)
        for path in glob_paths(root, "depth/*.png")
        if path.name in pictures
    ]


def _read(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    picture, path = frame
    image, depth = read_rgb(picture), read_uint16_depth(path, 256)
    return make_record(info, picture, image, depth, None, _intrinsics(picture, image.shape[:2]))


def _intrinsics(picture: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns f64 [3 3] by the calibration of the day, if it lies three folders above, or else by the size of the picture."""
    day, camera = (
        picture.parents[min(3, len(picture.parents) - 1)],
        picture.parents[1].name.removeprefix("image_"),
    )
    path = day / "calib_cam_to_cam.txt"
    if picture.parent.name == "data" and path.is_file():
        projection, calibrated = read_calibration(path).projection(camera)
        check_camera(projection, calibrated, size, path, picture)
        return projection[:, :3]
    if size not in DAYS:
        what = (
            f"no day's pictures have {size[1]} x {size[0]} pixels, so that its camera is not known"
        )
        raise UserError(
            what,
            where=picture,
            hint="put the day's calib_cam_to_cam.txt beside its drives, or leave the frame out",
        )
    focal, cx, cy = DAYS[size]
    return pinhole(focal, focal, cx, cy)


DATASET = Dataset("kitti_depth", _TITLE, "metric", ("train", "val"), "CC BY-NC-SA 3.0", _open)
