"""KITTI depth prediction: eleven scans merged and cleaned by stereo, about a fifth of the pixels.

Layouts, recognized by what the root holds:
  benchmark: {train, val}/2011_09_26_drive_0001_sync/proj_depth/groundtruth/{image_02, image_03}/
    NNNNNNNNNN.png, with the images of KITTI raw at 2011_09_26/2011_09_26_drive_0001_sync/
    {image_02, image_03}/data/NNNNNNNNNN.png in the root, in its raw/, or within the drives of train
    and val. Splits `train`, without the drives of Eigen's test split, and `val`.
  flat: rgb/NAME.png and depth/NAME.png, the split `train`.
Depth is 16-bit PNG, 1/256 meters along the axis of the rectified camera, 0 where invalid; there is
none in the upper third. The camera is that of 2011_09_26/calib_cam_to_cam.txt if the file exists
and fits the image's size, else that of the one day whose images have that size: lists of cameras in
copies of the data set sometimes name those of other days.
Source: cvlibs.net/datasets/kitti/eval_depth.php, the devkit's readme; J. Uhrig et al., 3DV 2017.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.records import Record
from modality_forcing.data.resize import format_size
from modality_forcing.datasets.common.formats import read_rgb, read_uint16_depth
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.kitti_raw import DAYS, TEST_DRIVES, check_camera, read_calibration
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError
from modality_forcing.paths import is_dir, is_file


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[tuple[Path, Path]]:
    for maps in glob_paths(root / split, "*_sync/proj_depth/groundtruth/image_0[23]"):
        drive = maps.parents[2]
        if split == "train" and drive.name in TEST_DRIVES:
            continue
        day = drive.name[:10]
        drives = (root / day / drive.name, root / "raw" / day / drive.name, drive)
        folders = (path / maps.name / "data" for path in drives)
        folder = next((folder for folder in folders if is_dir(folder)), None)
        yield from _pairs(folder, maps, unused)
    if split == "train":
        yield from _pairs(root / "rgb", root / "depth", unused)


def _pairs(images: Path | None, maps: Path, unused: Unused) -> list[tuple[Path, Path]]:
    """Returns the images and maps of the same names; images: None if they are not there."""
    return unused.match(glob_paths(images, "*.png") if images else [], glob_paths(maps, "*.png"))


def _read_frame(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    path, depth_path = frame
    image, depth = read_rgb(path), read_uint16_depth(depth_path, 256)
    height, width = image.shape[:2]
    intrinsics = _intrinsics(path, (height, width))
    return make_record(info, path, image, depth, intrinsics=intrinsics)


def _intrinsics(image: Path, size: tuple[int, int]) -> np.ndarray:
    """Returns f64 [3 3] by the calibration of the day three folders above, else by the size."""
    day = image.parents[min(3, len(image.parents) - 1)]
    path = day / "calib_cam_to_cam.txt"
    if image.parent.name == "data" and is_file(path):
        camera = image.parents[1].name.removeprefix("image_")
        projection, calibrated = read_calibration(path).projection(camera)
        check_camera(projection, size, calibrated=calibrated, path=path, image=image)
        return projection[:, :3]
    if size not in DAYS:
        what = f"no day's images have {format_size(size)} pixels, so that its camera is not known"
        hint = "put the day's calib_cam_to_cam.txt beside its drives, or leave the frame out"
        raise UserError(what, where=image, hint=hint)
    focal, cx, cy = DAYS[size]
    return pinhole(focal, focal, cx, cy)


DATASET = FrameDataset(
    name="kitti_depth",
    title="KITTI depth",
    splits=("train", "val"),
    license="CC BY-NC-SA 3.0",
    layout="SPLIT/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02 "
    "with KITTI raw's 2011_09_26 beside it",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
