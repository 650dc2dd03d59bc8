"""ARKitScenes: rooms seen by a tablet, with depth of its sensor or of a survey laser scanner.

Layout, in the root or in its folder raw (highres splits: upsampling, then raw): metadata.csv and
Training|Validation/VIDEO/, in which each file is VIDEO_SECONDS.png (or .pincam):
  vga_wide/ (640 x 480), else lowres_wide/ (256 x 192), else wide/: the image, and
    FOLDER_intrinsics/: its camera, one line of width, height, fx, fy, cx, cy;
  lowres_depth/ (256 x 192) and confidence/: the sensor's depth, valid where the confidence is 2,
    the highest;
  for the highres splits wide/ and highres_depth/ (1920 x 1440), rendered from the scanner's mesh,
    with its holes.
Depth is 16-bit PNG in millimeters along the axis, 0 where invalid. An image is matched with the
depth and the camera nearest in time, within 5 ms. Coarse depth is put at single pixels of the finer
image (`upsample_sparse`). Images are stored as the sensor is mounted. They are rotated upright by
the video's sky_direction, with depth and camera. Videos without a direction are left out.
Source: apple/ARKitScenes, DATA.md, raw/README.md, depth_upsampling/dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from modality_forcing.data.intrinsics import pinhole, rescale_intrinsics
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import (
    check_same_size,
    read_rgb,
    read_text,
    read_uint8,
    read_uint16_depth,
    wrap_parse_errors,
)
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    glob_paths,
    make_record,
    nearest_in_time,
    read_csv,
    rot90,
    upsample_sparse,
)
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError
from modality_forcing.paths import is_dir

MAX_TIME_GAP = 0.005  # seconds between an image and its depth
_TURNS = {"Up": 0, "Right": 1, "Down": 2, "Left": 3}  # counterclockwise, by the side of the sky
_AGAIN = "unpack the video again"


class _Frame(NamedTuple):
    image: Path
    depth: Path
    camera: Path | None
    turns: int


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[_Frame]:
    highres = split.startswith("highres")
    fold = "Training" if split.endswith("train") else "Validation"
    homes = (root, root / "upsampling", root / "raw") if highres else (root, root / "raw")
    home = next((home for home in homes if is_dir(home / fold)), root)
    columns = ("video_id", "fold", "sky_direction")
    source = "download_data.py of apple/ARKitScenes fetches it"
    rows = read_csv(home / "metadata.csv", columns, source)
    rows = [row for row in rows if row["fold"] == fold and is_dir(home / fold / row["video_id"])]
    for row in sorted(rows, key=lambda row: row["video_id"]):
        video, turns = home / fold / row["video_id"], _TURNS.get(row["sky_direction"])
        unused.add("videos have no sky_direction", 1, [video] if turns is None else [])
        if turns is not None:
            yield from _video_frames(video, highres, turns, unused)


def _video_frames(video: Path, highres: bool, turns: int, unused: Unused) -> list[_Frame]:
    """Returns the frames of one video."""
    folders = ("wide",) if highres else ("vga_wide", "lowres_wide", "wide")
    folder = next((folder for folder in folders if is_dir(video / folder)), None)
    images = _by_time(video / folder, ".png") if folder else []
    depths = _by_time(video / ("highres_depth" if highres else "lowres_depth"), ".png")
    cameras = _by_time(video / f"{folder}_intrinsics", ".pincam")
    camera_of = dict(nearest_in_time(_times(images), _times(cameras), MAX_TIME_GAP))
    frames: list[_Frame] = []
    for i, j in nearest_in_time(_times(images), _times(depths), MAX_TIME_GAP):
        camera = cameras[camera_of[i]][1] if i in camera_of else None
        frames.append(_Frame(images[i][1], depths[j][1], camera, turns))
    pairs = [(frame.image, frame.depth) for frame in frames]
    unused.add_partners([path for _, path in images], [path for _, path in depths], pairs)
    return frames


def _by_time(folder: Path, suffix: str) -> list[tuple[float, Path]]:
    """Returns the files of a folder with the seconds in their names, in order."""
    timed = []
    for path in glob_paths(folder, f"*_*{suffix}"):
        seconds = path.name.removesuffix(suffix).rpartition("_")[2]
        if seconds.replace(".", "", 1).isdecimal():
            timed.append((float(seconds), path))
    return sorted(timed)


def _times(timed: Sequence[tuple[float, Path]]) -> list[float]:
    return [time for time, _ in timed]


def _read_intrinsics(path: Path, image: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the intrinsics of a .pincam, rescaled to an image of `shape` [h w ...]."""
    with wrap_parse_errors(path, "is not width, height, fx, fy, cx, cy", _AGAIN):
        width, height, fx, fy, cx, cy = map(float, read_text(path).split())
        size = int(height), int(width)
    if min(size) <= 0:
        raise UserError("is for an image without pixels", where=path, hint=_AGAIN)
    return rescale_intrinsics(pinhole(fx, fy, cx, cy), size, shape, image)


def _read_frame(info: DatasetInfo, frame: _Frame) -> Record:
    image, depth = read_rgb(frame.image), read_uint16_depth(frame.depth, 1000)
    if frame.depth.parent.name == "lowres_depth":
        path = frame.depth.parents[1] / "confidence" / frame.depth.name
        confidence = read_uint8(path)
        check_same_size(confidence, depth, path, frame.depth)
        depth = np.where(confidence == 2, depth, 0)
        (height, width), (rows, columns) = image.shape[:2], depth.shape
        if width * rows == height * columns and height >= rows:
            depth = upsample_sparse(depth, (height, width))
    check_same_size(image, depth, frame.image, frame.depth)
    if frame.camera is None:
        image, depth, _ = rot90(image, depth, np.full((3, 3), np.nan), frame.turns)
        return make_record(info, frame.image, image, depth)
    intrinsics = _read_intrinsics(frame.camera, frame.image, depth.shape)
    image, depth, intrinsics = rot90(image, depth, intrinsics, frame.turns)
    return make_record(info, frame.image, image, depth, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="arkitscenes",
    title="ARKitScenes",
    splits=("train", "val", "highres_train", "highres_val"),
    license="Apple's, non-commercial",
    layout="metadata.csv and Training|Validation/VIDEO/{vga_wide, lowres_depth, confidence}/"
    "VIDEO_SECONDS.png, or for the highres splits {wide, highres_depth}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
