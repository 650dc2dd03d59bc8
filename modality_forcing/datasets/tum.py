"""TUM RGB-D: sequences of a Kinect or Xtion, pictures and depth with a clock of their own each.

Layout, in the folder given or in folders of it: rgb.txt and depth.txt, which name rgb/TIME.png and depth/TIME.png, a line
each: seconds and path. Depth is 16-bit PNG, 1/5000 metres along the axis, 0 where unknown, registered to the picture. A
picture goes with the depth nearest in time, within 20 ms, and each depth with one picture; the others are left out.
Intrinsics are those the authors recommend for their registered depth, except for the third camera, freiburg3, whose
pictures they have undistorted. Source: the file formats page of cvg.cit.tum.de/data/datasets/rgbd-dataset.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_rgb, read_text, read_uint16_depth
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    nearest_in_time,
    pinhole,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

MAX_TIME_GAP = 0.02  # seconds between a picture and its depth, at most
_TITLE = "TUM RGB-D"
_USUAL = pinhole(525.0, 525.0, 319.5, 239.5)
_THIRD = pinhole(535.4, 539.2, 320.1, 247.6)


def _open(root: Path, split: str) -> LazySource[tuple[Path, Path]]:
    root = require_dir(root, _TITLE)
    sequences = [
        path.parent for path in (*glob_paths(root, "rgb.txt"), *glob_paths(root, "*/rgb.txt"))
    ]
    pairs = [pair for sequence in sequences for pair in _pairs(sequence)]
    layout = (
        "SEQUENCE/{rgb.txt, depth.txt, rgb/TIME.png, depth/TIME.png}, times at most 20 ms apart"
    )
    return LazySource(
        require_nonempty(pairs, root, _TITLE, layout),
        partial(_read, DatasetInfo("tum", "metric", root)),
    )


def _pairs(sequence: Path) -> list[tuple[Path, Path]]:
    pictures, depths = _times(sequence / "rgb.txt"), _times(sequence / "depth.txt")
    pairs = nearest_in_time(
        [time for time, _ in pictures], [time for time, _ in depths], MAX_TIME_GAP
    )
    return [(sequence / pictures[i][1], sequence / depths[j][1]) for i, j in pairs]


def _times(path: Path) -> list[tuple[float, str]]:
    times = []
    for number, line in enumerate(read_text(path, "a list of times").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            time, name = line.split()[:2]
            times.append((float(time), name))
        except ValueError as error:
            raise UserError(
                f"line {number} is not a time and a path", where=path, hint="unpack it again"
            ) from error
    return sorted(times)


def _read(info: DatasetInfo, pair: tuple[Path, Path]) -> Record:
    picture, depth = pair
    third = "freiburg3" in picture.parents[1].name
    return make_record(
        info,
        picture,
        read_rgb(picture),
        read_uint16_depth(depth, 5000),
        intrinsics=_THIRD if third else _USUAL,
    )


DATASET = Dataset("tum", _TITLE, "metric", ("train",), "CC BY 4.0", _open)
