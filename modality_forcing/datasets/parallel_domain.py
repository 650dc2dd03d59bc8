"""ParallelDomain-4D: rendered streets seen by sixteen virtual cameras and three on a car, dense.

Layout: folders scene_000000, ... with
  rgb/CAMERA/NUMBER.png and depth/CAMERA/NUMBER.npz, key `data`, [h w] metres along the axis, 640 x 480 pixels;
  calibration/KEY.json, the cameras' names with their intrinsics in pixels;
  scene_HASH.json, the scene in TRI's DGP format. Where it is there, it says which depth and calibration a picture has
    (annotation 6 is depth), as other ParallelDomain sets need that come in this format; without it pictures and depth of one
    name belong together, and there must be one calibration.
500 m and more is unknown: the sky has such values. There is no official split.
What is named and not there is passed over. Source: facebookresearch/map-anything, data_processing, conversion of
paralleldomain4d; TRI-ML/dgp, dgp/proto/annotations.proto; gcd.cs.columbia.edu.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_npz, read_rgb
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.ddad import read_camera, read_samples
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

FAR = 500.0
_TITLE = "ParallelDomain"
_LAYOUT = "scene_000000/{rgb/CAMERA/*.png, depth/CAMERA/*.npz, calibration/*.json, scene_*.json}"
_DEPTH = "6"  # the number of this type of annotation


@dataclass(frozen=True)
class _Frame:
    image: Path
    depth: Path
    calibration: Path
    camera: str


def _open(root: Path, split: str) -> LazySource[_Frame]:
    root = require_dir(root, _TITLE)
    folders = [
        folder
        for folder in (root, *glob_paths(root, "*"))
        if (folder / "rgb").is_dir() and (folder / "depth").is_dir()
    ]
    kept = require_nonempty(
        (frame for folder in folders for frame in _frames(folder)), root, _TITLE, _LAYOUT
    )
    return LazySource(kept, partial(_read, DatasetInfo("parallel_domain", "metric", root)))


def _frames(folder: Path) -> Iterator[_Frame]:
    pictures, maps = (glob_paths(folder, pattern) for pattern in ("rgb/*/*.png", "depth/*/*.npz"))
    scenes = glob_paths(folder, "scene_*.json")
    if scenes:
        here = {*pictures, *maps}
        for scene in scenes:
            for datums, calibration in read_samples(scene):
                for datum in (
                    datum
                    for datum in datums
                    if datum.kind == "image" and _DEPTH in datum.annotations
                ):
                    depth = folder / datum.annotations[_DEPTH]
                    if datum.file in here and depth in here:
                        yield _Frame(datum.file, depth, calibration, datum.sensor)
        return
    here = {*maps}
    pairs = [(path, folder / "depth" / path.parent.name / f"{path.stem}.npz") for path in pictures]
    pairs = [(picture, depth) for picture, depth in pairs if depth in here]
    calibrations = glob_paths(folder, "calibration/*.json")
    if pairs and len(calibrations) != 1:
        what = f"has {len(calibrations)} calibrations and no scene_*.json that says which is whose"
        raise UserError(what, where=folder, hint="unpack or download it again")
    yield from (
        _Frame(picture, depth, calibrations[0], picture.parent.name) for picture, depth in pairs
    )


def _read(info: DatasetInfo, frame: _Frame) -> Record:
    image, depth = read_rgb(frame.image), read_npz(frame.depth, "data")
    if depth.ndim == 3 and depth.shape[-1] == 1:
        depth = depth[..., 0]
    if depth.ndim != 2:
        what = f"holds numbers of shape {depth.shape}, not a map of depth"
        raise UserError(what, where=frame.depth, hint="unpack or download it again")
    camera = read_camera(frame.calibration, frame.camera, image.shape[:2])
    return make_record(info, frame.image, image, depth, depth < FAR, camera.matrix)


DATASET = Dataset("parallel_domain", _TITLE, "metric", ("train",), "not stated", _open)
