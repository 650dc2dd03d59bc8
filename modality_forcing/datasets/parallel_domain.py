"""ParallelDomain-4D: rendered streets seen by 16 virtual cameras and three on a car, dense depth.

Layout: folders scene_000000, ... with
  rgb/CAMERA/NUMBER.png and depth/CAMERA/NUMBER.npz, key `data`, [h w] meters along the axis,
    640 x 480 pixels;
  calibration/KEY.json, the cameras' names with their intrinsics in pixels;
  scene_HASH.json, the scene in TRI's DGP format. If it exists, it states the depth and calibration
    of each image (annotation 6 is depth), as other ParallelDomain sets in this format require.
    Without it, image and depth of the same name belong together, and there must be one calibration.
Depth of 500 m and more is invalid: the sky has such values. There is no official split. Files that
a scene names but that are missing are counted and left out.
Source: facebookresearch/map-anything, data_processing, conversion of paralleldomain4d; TRI-ML/dgp,
dgp/proto/annotations.proto; gcd.cs.columbia.edu.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import UNPACK_AGAIN, as_map, read_npz, read_rgb
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.ddad import NAMED, read_camera, read_samples
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError

FAR = 500.0
_DEPTH = "6"  # the number of this type of annotation


class _Frame(NamedTuple):
    image: Path
    depth: Path
    calibration: Path
    camera: str
    size: tuple[int, int] | None = None  # (h, w) for which the camera was calibrated


def _list_frames(root: Path, split: str, unused: Unused) -> Iterator[_Frame]:
    for folder in (root, *glob_paths(root, "*")):
        images, maps = glob_paths(folder, "rgb/*/*.png"), glob_paths(folder, "depth/*/*.npz")
        scenes = glob_paths(folder, "scene_*.json") if images and maps else []
        if scenes:
            frames = list(_frames_by_scene(folder, scenes, {*images, *maps}, unused))
        else:
            frames = list(_frames_by_name(folder, images, set(maps)))
        unused.add_partners(images, maps, [(frame.image, frame.depth) for frame in frames])
        yield from frames


def _frames_by_scene(
    folder: Path, scenes: list[Path], here: set[Path], unused: Unused
) -> Iterator[_Frame]:
    for scene in scenes:
        for datums, calibration in read_samples(scene):
            for datum in datums:
                if datum.kind == "image" and _DEPTH in datum.annotations:
                    files = datum.file, folder / datum.annotations[_DEPTH]
                    absent = [path for path in files if path not in here]
                    unused.add(NAMED, 2, absent)
                    if not absent:
                        yield _Frame(*files, calibration, datum.sensor, datum.size)


def _frames_by_name(folder: Path, images: list[Path], maps: set[Path]) -> Iterator[_Frame]:
    calibrations = glob_paths(folder, "calibration/*.json")
    for image in images:
        depth = folder / "depth" / image.parent.name / f"{image.stem}.npz"
        if depth not in maps:
            continue
        if len(calibrations) != 1:
            count = len(calibrations)
            what = f"has {count} calibrations and no scene_*.json that assigns them"
            raise UserError(what, where=folder, hint=UNPACK_AGAIN)
        yield _Frame(image, depth, calibrations[0], image.parent.name)


def _read_frame(info: DatasetInfo, frame: _Frame) -> Record:
    image = read_rgb(frame.image)
    depth = as_map(read_npz(frame.depth, "data"), frame.depth)
    camera = read_camera(frame.calibration, frame.camera, frame.image, image.shape, size=frame.size)
    valid = depth < FAR
    return make_record(info, frame.image, image, depth, valid=valid, intrinsics=camera.matrix)


DATASET = FrameDataset(
    name="parallel_domain",
    title="ParallelDomain",
    splits=("train",),
    license="not stated",
    layout="scene_000000/{rgb/CAMERA/*.png, depth/CAMERA/*.npz, calibration/*.json, scene_*.json}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
