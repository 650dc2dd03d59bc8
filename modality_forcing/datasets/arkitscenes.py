"""ARKitScenes: rooms seen by a tablet with a laser sensor, its own depth and that of a surveyor's scanner.

Layout, in the folder given or in its folder raw (highres splits: upsampling, then raw): metadata.csv and
Training|Validation/VIDEO/, in which each file is VIDEO_SECONDS.png (or .pincam):
  vga_wide/ (640 x 480), else lowres_wide/ (256 x 192), else wide/: the picture, and FOLDER_intrinsics/ its camera,
    one line of width, height, fx, fy, cx, cy;
  lowres_depth/ (256 x 192) and confidence/: the sensor's depth, which counts where the confidence is 2, the highest;
  for the highres splits wide/ and highres_depth/ (1920 x 1440), rendered from the scanner's mesh, with its holes.
Depth is 16-bit PNG in millimetres along the axis, 0 where unknown. A picture goes with the depth, and the camera, nearest in
time, within 5 ms. Coarse depth is put at single pixels of the finer picture (`upsample_sparse`). Pictures lie as the sensor does;
they are turned upright by the video's sky_direction, depth and camera with them. Videos without a direction are left out.
Source: apple/ARKitScenes, DATA.md, raw/README.md, depth_upsampling/dataset.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.data.resize import scale_intrinsics
from modality_forcing.datasets.common.formats import (
    check_same_size,
    read_rgb,
    read_text,
    read_uint8,
    read_uint16_depth,
)
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    nearest_in_time,
    pinhole,
    read_csv,
    require_dir,
    require_nonempty,
    rot90,
    upsample_sparse,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

MAX_TIME_GAP = 0.005  # seconds between a picture and its depth, at most
_TITLE = "ARKitScenes"
_QUARTERS = {
    "Up": 0,
    "Right": 1,
    "Down": 2,
    "Left": 3,
}  # counterclockwise, by where the sky is in the stored picture
_FOLDS = {
    "train": "Training",
    "val": "Validation",
    "highres_train": "Training",
    "highres_val": "Validation",
}


@dataclass(frozen=True)
class _Frame:
    picture: Path
    depth: Path
    camera: Path | None
    quarters: int


def _open(root: Path, split: str) -> LazySource[_Frame]:
    root = require_dir(root, _TITLE)
    highres = split.startswith("highres")
    places = (root, root / "upsampling", root / "raw") if highres else (root, root / "raw")
    fold = _FOLDS[split]
    home = next((place for place in places if (place / fold).is_dir()), root)
    rows = read_csv(
        home / "metadata.csv",
        ("video_id", "fold", "sky_direction"),
        "download_data.py of apple/ARKitScenes fetches it",
    )
    frames = [
        frame
        for row in sorted(rows, key=lambda row: row["video_id"])
        if row["fold"] == fold and row["sky_direction"] in _QUARTERS
        for frame in _frames(
            home / fold / row["video_id"], highres, _QUARTERS[row["sky_direction"]]
        )
    ]
    depth = "wide, highres_depth" if highres else "vga_wide, lowres_depth, confidence"
    layout = f"metadata.csv and {fold}/VIDEO/{{{depth}}}/VIDEO_SECONDS.png"
    return LazySource(
        require_nonempty(frames, root, _TITLE, layout),
        partial(_read, DatasetInfo("arkitscenes", "metric", root)),
    )


def _frames(video: Path, highres: bool, quarters: int) -> list[_Frame]:
    """The frames of one video, none where it lacks a folder or is not here."""
    kinds = ("wide",) if highres else ("vga_wide", "lowres_wide", "wide")
    kind = next((kind for kind in kinds if (video / kind).is_dir()), None)
    if kind is None:
        return []
    pictures, depths = (
        _by_time(video / folder, ".png")
        for folder in (kind, "highres_depth" if highres else "lowres_depth")
    )
    cameras = _by_time(video / f"{kind}_intrinsics", ".pincam")
    seen_by = dict(nearest_in_time(_times(pictures), _times(cameras), MAX_TIME_GAP))
    return [
        _Frame(
            pictures[i][1], depths[j][1], cameras[seen_by[i]][1] if i in seen_by else None, quarters
        )
        for i, j in nearest_in_time(_times(pictures), _times(depths), MAX_TIME_GAP)
    ]


def _by_time(folder: Path, suffix: str) -> list[tuple[float, Path]]:
    """A folder's files by the seconds in their names."""
    timed = []
    for path in glob_paths(folder, f"*_*{suffix}"):
        seconds = path.name.removesuffix(suffix).rpartition("_")[2]
        if seconds.replace(".", "", 1).isdecimal():
            timed.append((float(seconds), path))
    return sorted(timed)


def _times(timed: Sequence[tuple[float, Path]]) -> list[float]:
    return [time for time, _ in timed]


def _camera(path: Path | None, size: tuple[int, int]) -> np.ndarray | None:
    """The intrinsics of a .pincam, brought to a picture of (h, w) pixels if it was written for another size."""
    if path is None:
        return None
    try:
        width, height, fx, fy, cx, cy = (
            float(number) for number in read_text(path, "a camera").split()
        )
    except ValueError as error:
        raise UserError(
            "is not width, height, fx, fy, cx, cy", where=path, hint="unpack the video again"
        ) from error
    if min(width, height) <= 0:
        raise UserError(
            "is for a picture without pixels", where=path, hint="unpack the video again"
        )
    return scale_intrinsics(pinhole(fx, fy, cx, cy), (int(height), int(width)), size)


def _read(info: DatasetInfo, frame: _Frame) -> Record:
    image, depth = read_rgb(frame.picture), read_uint16_depth(frame.depth, 1000)
    if frame.depth.parent.name == "lowres_depth":
        path = frame.depth.parents[1] / "confidence" / frame.depth.name
        confidence = read_uint8(path)
        check_same_size(confidence, depth, path, frame.depth)
        depth = np.where(confidence == 2, depth, 0)
        (height, width), (rows, columns) = image.shape[:2], depth.shape
        if width * rows == height * columns and height >= rows:
            depth = upsample_sparse(depth, (height, width))
    check_same_size(image, depth, frame.picture, frame.depth)
    camera = _camera(frame.camera, depth.shape)
    known = np.full((3, 3), np.nan) if camera is None else camera
    image, depth, known = rot90(image, depth, known, frame.quarters)
    return make_record(
        info, frame.picture, image, depth, intrinsics=None if camera is None else known
    )


DATASET = Dataset(
    "arkitscenes",
    _TITLE,
    "metric",
    ("train", "val", "highres_train", "highres_val"),
    "Apple's, non-commercial",
    _open,
)
