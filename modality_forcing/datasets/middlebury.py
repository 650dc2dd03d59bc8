"""Middlebury stereo, 2014 and later: rooms under structured light, the left picture with depth from its disparity.

Layout, in the folder given or up to two folders below: SCENE/im0.png, disp0.pfm (disp0GT.pfm in the evaluation's own
archives) and calib.txt; scenes without disparity, kept back for testing, are passed over. Disparity is in pixels, +inf
where unknown. Depth along the axis is baseline * focal / (disparity + doffs), of calib.txt: the baseline there is in
millimetres, and doffs is how much farther right the axis of the right camera goes through its picture.
Source: vision.middlebury.edu/stereo/data/scenes2014.
"""

from __future__ import annotations

import re
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
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

_TITLE = "Middlebury stereo"


def _open(root: Path, split: str) -> LazySource[tuple[Path, Path]]:
    root = require_dir(root, _TITLE)
    scenes = [
        path.parent
        for above in ("", "*/", "*/*/")
        for path in glob_paths(root, f"{above}calib.txt")
    ]
    maps = [
        (scene, scene / name)
        for scene in scenes
        for name in ("disp0.pfm", "disp0GT.pfm")
        if (scene / name).is_file()
    ]
    frames = [(scene / "im0.png", disparity) for scene, disparity in dict(reversed(maps)).items()][
        ::-1
    ]
    layout = "SCENE/{im0.png, disp0.pfm, calib.txt}"
    return LazySource(
        require_nonempty(frames, root, _TITLE, layout),
        partial(_read, DatasetInfo("middlebury", "metric", root)),
    )


def calibration(path: Path) -> tuple[np.ndarray, float, float]:
    """Returns intrinsics f64 [3 3], baseline in metres and doffs in pixels of a calib.txt; raises UserError without them."""
    values = dict(
        line.split("=", 1) for line in read_text(path, "a calibration").splitlines() if "=" in line
    )
    try:
        numbers = re.findall(r"[-+.\deE]+", values["cam0"])
        matrix = np.array(numbers, np.float64).reshape(3, 3)
        return matrix, float(values["baseline"]) / 1000, float(values["doffs"])
    except (KeyError, ValueError) as error:
        raise UserError(
            "lacks cam0, baseline or doffs", where=path, hint="unpack the scene again"
        ) from error


def depth_of(disparity: np.ndarray, focal: float, baseline: float, offset: float) -> np.ndarray:
    """Returns depth f32 [h w] in the unit of the baseline; 0 where the disparity is not finite or puts nothing ahead."""
    known = np.isfinite(disparity) & (disparity + offset > 0)
    return np.where(known, focal * baseline / np.where(known, disparity + offset, 1), 0).astype(
        np.float32
    )


def _read(info: DatasetInfo, frame: tuple[Path, Path]) -> Record:
    picture, path = frame
    intrinsics, baseline, offset = calibration(path.with_name("calib.txt"))
    depth = depth_of(read_pfm(path), intrinsics[0, 0], baseline, offset)
    return make_record(info, picture, read_rgb(picture), depth, intrinsics=intrinsics)


DATASET = Dataset("middlebury", _TITLE, "metric", ("train",), "none stated", _open)
