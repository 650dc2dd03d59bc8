"""TUM RGB-D: sequences of a Kinect or Xtion, images and depth with a clock of their own each.

Layout, in the root or in folders of it: rgb.txt and depth.txt, which name rgb/TIME.png and
depth/TIME.png, one per line: seconds and path. Depth is 16-bit PNG, 1/5000 meters along the axis,
0 where invalid, registered to the image. An image is matched with the depth nearest in time, within
20 ms, and each depth with one image; the others are left out. Intrinsics are those the authors
recommend for their registered depth, except for the third camera, freiburg3, whose images they have
undistorted. Which camera it was is read off the month of the recording, else off the name of its
folder; `--option camera=FX,FY,CX,CY` states that of other recordings in this layout. Images of
another size than 640 x 480 have their intrinsics rescaled.
Source: the file formats page of cvg.cit.tum.de/data/datasets/rgbd-dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.camera_option import vga_intrinsics
from modality_forcing.datasets.common.formats import (
    read_lines,
    read_rgb,
    read_uint16_depth,
    wrap_parse_errors,
)
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    glob_paths,
    make_record,
    nearest_in_time,
)
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset

MAX_TIME_GAP = 0.02  # seconds between an image and its depth
_DEFAULT = pinhole(525.0, 525.0, 319.5, 239.5)
_CAMERAS = {
    "freiburg1": _DEFAULT,
    "freiburg2": _DEFAULT,
    "freiburg3": pinhole(535.4, 539.2, 320.1, 247.6),
}
# The months of the recordings, in seconds since 1970. Unlike folders, images are never renamed.
_RECORDED = {
    "freiburg1": (1304208000, 1306886400),  # May 2011
    "freiburg2": (1309478400, 1312156800),  # July 2011
    "freiburg3": (1341100800, 1343779200),  # July 2012
}


class _Frame(NamedTuple):
    image: Path
    depth: Path
    camera: str  # one of _CAMERAS, "" if unknown


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[_Frame]:
    for path in glob_paths(root, "rgb.txt", max_depth=1):
        folder = path.parent
        images, maps = _read_times(path), _read_times(folder / "depth.txt")
        times, depth_times = [time for time, _ in images], [time for time, _ in maps]
        frames = [
            _Frame(folder / images[i][1], folder / maps[j][1], _camera_of(folder, times[i]))
            for i, j in nearest_in_time(times, depth_times, MAX_TIME_GAP)
        ]
        unused.add_partners(
            [folder / name for _, name in images],
            [folder / name for _, name in maps],
            [(frame.image, frame.depth) for frame in frames],
        )
        yield from frames


def _camera_of(folder: Path, time: float) -> str:
    for name, (start, end) in _RECORDED.items():
        if start <= time < end:
            return name
    return next((name for name in _CAMERAS if name in folder.resolve().name), "")


def _read_times(path: Path) -> list[tuple[float, str]]:
    times = []
    for number, line in enumerate(read_lines(path), 1):
        if line.strip() and not line.startswith("#"):
            what = f"line {number} is not a time and a path"
            with wrap_parse_errors(path, what, "unpack it again"):
                time, name = line.split()[:2]
                times.append((float(time), name))
    return sorted(times)


def _read_frame(info: DatasetInfo, frame: _Frame) -> Record:
    image, depth = read_rgb(frame.image), read_uint16_depth(frame.depth, 5000)
    known: np.ndarray | None = _CAMERAS.get(frame.camera)
    hint = "name its folder after freiburg1, freiburg2 or freiburg3"
    intrinsics = vga_intrinsics(known, info.camera, image.shape, frame.image, hint=hint)
    return make_record(info, frame.image, image, depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="tum",
    title="TUM RGB-D",
    splits=("train",),
    license="CC BY 4.0",
    layout="SEQUENCE/{rgb.txt, depth.txt, rgb/TIME.png, depth/TIME.png}, times at most 20 ms apart",
    list_frames=_list_frames,
    read_frame=_read_frame,
    options=("camera",),
)
