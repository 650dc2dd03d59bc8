"""Middlebury stereo, 2014 and later: rooms under structured light, depth of the left image.

Layout, in the root or up to two folders below: SCENE/im0.png, disp0.pfm (disp0GT.pfm in the
evaluation's own archives) and calib.txt; scenes without disparity, held out for testing, are
skipped. Disparity is in pixels, +inf where invalid. Depth along the axis is
baseline * focal / (disparity + doffs), all of calib.txt: the baseline is in millimeters there, and
doffs is the difference of the principal points, x of the right camera minus x of the left. Each of
the authors' sizes has a calib.txt of its own, and images of another size than it states are
refused.
Source: vision.middlebury.edu/stereo/data/scenes2014.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import (
    check_camera_size,
    read_lines,
    read_pfm,
    read_rgb,
    wrap_parse_errors,
)
from modality_forcing.datasets.common.lazy import DatasetInfo, first_file, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[tuple[Path, Path]]:
    calibrations = glob_paths(root, "calib.txt", max_depth=2)
    scenes = [path.parent for path in calibrations]
    for scene in scenes:
        disparity = first_file((scene / "disp0.pfm", scene / "disp0GT.pfm"))
        unused.add("scenes have no disp0.pfm", 1, [] if disparity else [scene / "calib.txt"])
        if disparity:
            yield scene / "im0.png", disparity
    images = glob_paths(root, "im0.png", max_depth=2)
    alone = [path for path in images if path.parent not in scenes]
    unused.add("images have no calib.txt", len(images), alone)


@dataclass(frozen=True, eq=False)
class _Calibration:
    intrinsics: np.ndarray  # f64 [3 3] of the left camera
    size: tuple[int, int]  # (h, w) of the images
    baseline: float  # meters
    doffs: float  # pixels


def _read_calibration(path: Path) -> _Calibration:
    values = dict(line.split("=", 1) for line in read_lines(path) if "=" in line)
    what = "lacks cam0, baseline, doffs, width or height"
    with wrap_parse_errors(path, what, "unpack the scene again"):
        numbers = re.findall(r"[-+.\deE]+", values["cam0"])
        return _Calibration(
            intrinsics=np.array(numbers, np.float64).reshape(3, 3),
            size=(int(values["height"]), int(values["width"])),
            baseline=float(values["baseline"]) / 1000,
            doffs=float(values["doffs"]),
        )


def to_depth(disparity: np.ndarray, focal: float, baseline: float, doffs: float) -> np.ndarray:
    """Returns depth f32 [h w] in the unit of the baseline, 0 for infinite or negative depth."""
    valid = np.isfinite(disparity) & (disparity + doffs > 0)
    depth = focal * baseline / np.where(valid, disparity + doffs, 1)
    return np.where(valid, depth, 0).astype(np.float32)


def _read_frame(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    path, disparity_path = frame
    camera = _read_calibration(path.with_name("calib.txt"))
    disparity = read_pfm(disparity_path)
    check_camera_size(disparity.shape, camera.size, disparity_path)
    depth = to_depth(disparity, float(camera.intrinsics[0, 0]), camera.baseline, camera.doffs)
    return make_record(info, path, read_rgb(path), depth, intrinsics=camera.intrinsics)


DATASET = FrameDataset(
    name="middlebury",
    title="Middlebury stereo",
    splits=("train",),
    license="none stated",
    layout="SCENE/{im0.png, disp0.pfm, calib.txt}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
