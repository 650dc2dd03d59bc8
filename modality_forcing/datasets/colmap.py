"""A reconstruction of one's own by COLMAP: pictures with the depth of the points that each of them saw.

Layout: images/ and a model (`data.colmap`) in sparse/0, sparse, the folder itself or another folder of it. Depth is along
the axis, in the model's unit, which is arbitrary ("sfm"); known at the pixels of the points that the picture saw and that
the model has within 4 pixels of there, the nearest where two fall on one. Pictures are straightened for their lens
(`cameras.undistort`), the points projected anew. Images of the model that are not in images/ are left out (`missing`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.cameras import pinhole_like, undistort
from modality_forcing.datasets.common.colmap import Image, Model3D, find_model, read_model
from modality_forcing.datasets.common.formats import read_rgb
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    make_record,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset
from modality_forcing.errors import UserError

MISS = (
    4.0  # pixels from where a point was seen to where the model has it, at most; COLMAP's own limit
)
_TITLE = "a COLMAP reconstruction"
_LAYOUT = "images/ and sparse/0/{cameras, images, points3D}.bin or .txt"


@dataclass(frozen=True)
class Reconstruction:
    """The posed images of one model that are on disk, as a source of records."""

    root: Path
    missing: int  # images of the model that are not
    _info: DatasetInfo = field(repr=False)
    _model: Model3D = field(repr=False)
    _images: tuple[Image, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Record:
        image = self._images[index]
        path = self.root / "images" / image.name
        camera = self._model.cameras[image.camera]
        picture = read_rgb(path)
        if picture.shape[:2] != camera.size:
            (height, width), (rows, columns) = picture.shape[:2], camera.size
            what = f"is {width} x {height} pixels, but the model's camera {columns} x {rows}"
            raise UserError(
                what, where=path, hint="put the pictures there that the model was made of"
            )
        points, _, miss = self._model.depths(image)
        straight = camera if camera.straight else pinhole_like(camera, filled=True)
        if not camera.straight:
            nothing = np.zeros(camera.size, np.float32)
            picture, _, _ = undistort(picture, nothing, nothing > 0, camera, straight)
        depth = _dropped(
            points[miss <= MISS], straight.project(points[miss <= MISS])[0], straight.size
        )
        return make_record(self._info, path, picture, depth, intrinsics=straight.matrix)


def _dropped(points: np.ndarray, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depth f32 [h w] of points [n 3] at the pixels [n 2] they fall on, 0 where there is none."""
    column, row = np.rint(pixels).astype(np.int64).T
    inside = (column >= 0) & (column < size[1]) & (row >= 0) & (row < size[0])
    nearest = np.full(size, np.inf, np.float32)
    np.minimum.at(nearest, (row[inside], column[inside]), points[inside, 2].astype(np.float32))
    return np.where(np.isfinite(nearest), nearest, 0)


def _open(root: Path, split: str) -> Reconstruction:
    root = require_dir(root, _TITLE)
    place = find_model(root)
    if place is None or not (root / "images").is_dir():
        raise UserError(f"holds no frame of {_TITLE}", where=root, hint=f"its layout is {_LAYOUT}")
    model = read_model(place)
    here = [
        image
        for image in model.images
        if (root / "images" / image.name).is_file() and len(image.points)
    ]
    images = require_nonempty(here, root, _TITLE, _LAYOUT)
    return Reconstruction(
        root, len(model.images) - len(images), DatasetInfo("colmap", "sfm", root), model, images
    )


DATASET = Dataset("colmap", "COLMAP", "sfm", ("train",), "your own", _open)
