"""A COLMAP reconstruction: images with the depth of the points that each of them saw.

Layout: images/ and a model (`common.colmap`) in sparse/0, sparse, the root or another folder of it.
Depth is along the axis in the arbitrary unit of the model ("sfm"). It is known at the pixels of the
observed points whose projection is within 4 pixels of the observation, the nearest point where two
share a pixel. Images are undistorted (`cameras.undistort`) and the points projected again. Their
EXIF orientations are ignored as by COLMAP, unless only an upright image fits its camera. Images
of the model that are not in images/ or saw no point are left out, counted and named; names are
compared in one Unicode form.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from modality_forcing.data.files import IMAGE_SUFFIXES
from modality_forcing.data.names import list_some, name_key
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.cameras import enclosed_pinhole, undistort
from modality_forcing.datasets.common.colmap import Model3D, PosedImage, find_model, read_model
from modality_forcing.datasets.common.formats import check_camera_size, read_photograph
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, is_there, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset
from modality_forcing.errors import UserError
from modality_forcing.paths import is_dir

MAX_REPROJECTION_ERROR = 4.0  # pixels; COLMAP's own limit


class _Frame(NamedTuple):
    model: Model3D
    posed: PosedImage
    path: Path  # of the image


def _list_frames(root: Path, split: str, unused: Unused) -> list[_Frame]:
    folder = find_model(root)
    if folder is None or not is_dir(root / "images"):
        return []
    model, files = read_model(folder), _image_files(root)
    names = {name_key(image.name): image for image in model.images}
    found = [
        _Frame(model, image, files[name_key(image.name)])
        for image in model.images
        if name_key(image.name) in files
    ]
    if model.images and not found:
        what = f"holds none of the {len(model.images)} images of the model in {folder}"
        names = list_some(image.name for image in model.images)
        raise UserError(what, where=root / "images", hint=f"put them there: {names}")
    absent = [image.name for key, image in names.items() if key not in files]
    empty = [frame.path for frame in found if not len(frame.posed.points)]
    unposed = [files[key] for key in files.keys() - names.keys()]
    unposed = [path for path in unposed if path.suffix.lower() in IMAGE_SUFFIXES]
    unused.add("images of the model are not in images/", len(model.images), sorted(absent))
    unused.add("images of the model saw no point", len(model.images), sorted(empty))
    unused.add("images are not in the model", len(found) + len(unposed), sorted(unposed))
    return [frame for frame in found if len(frame.posed.points)]


def _image_files(root: Path) -> dict[str, Path]:
    """Returns what is below images/, by the `name_key` of its path there."""
    folder = root / "images"
    files = (path for path in glob_paths(folder, "**/*") if is_there(path))
    return {name_key(path.relative_to(folder).as_posix()): path for path in files}


def _read_frame(info: DatasetInfo, frame: _Frame) -> Record:
    model, posed, path = frame
    camera = model.cameras[posed.camera]
    image = read_photograph(path, camera.size)
    hint = "put the images there that the model was made of"
    check_camera_size(image.shape, camera.size, path, hint)
    points, _, errors = model.depths(posed)
    points, pinhole = points[errors <= MAX_REPROJECTION_ERROR], camera
    if not camera.is_pinhole:
        pinhole = enclosed_pinhole(camera)
        empty = np.zeros(camera.size, np.float32)
        image, _, _ = undistort(image, empty, empty > 0, camera, to=pinhole)
    depth = _rasterize(points, pinhole.project(points)[0], pinhole.size)
    return make_record(info, path, image, depth, intrinsics=pinhole.matrix)


def _rasterize(points: np.ndarray, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns depth f32 [h w] of points [n 3] at their pixels [n 2], 0 elsewhere."""
    column, row = np.rint(pixels).astype(np.int64).T
    inside = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
    nearest = np.full(size, np.inf, np.float32)
    np.minimum.at(nearest, (row[inside], column[inside]), points[inside, 2].astype(np.float32))
    return np.where(np.isfinite(nearest), nearest, 0)


DATASET = FrameDataset(
    name="colmap",
    title="COLMAP reconstruction",
    unit="sfm",
    splits=("train",),
    license="your own",
    layout="images/ and sparse/0/{cameras, images, points3D}.bin or .txt",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
