"""A folder of a user's own images, in the layout of `data.folder.ImageFolder` but uncropped.

Options, each `--option NAME=VALUE` of mforce prepare: depth_scale (unit per stored number, 0.001
for millimeters), unit (metric, sfm or relative), captions (a captions file elsewhere). Depth of
another size than its image is resampled to the image: a coarser map as points, never interpolated,
a finer one picked. Images without depth are text-to-image records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import numpy as np

from modality_forcing.data.files import check_scale, read_depth, read_image
from modality_forcing.data.folder import ImageFolder, check_aspect
from modality_forcing.data.records import Record, Unit
from modality_forcing.data.resize import downscale_depth
from modality_forcing.datasets.common.lazy import upsample_sparse
from modality_forcing.datasets.registry import Dataset, check_split
from modality_forcing.errors import UserError

_OPTIONS = ("depth_scale", "unit", "captions")


@dataclass(frozen=True)
class WholeFolder(ImageFolder):
    """Uncropped images and depth of a folder; `resolution` is unused."""

    resolution: int = 1

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        image = read_image(entry.image)
        size = (image.shape[0], image.shape[1])
        depth, valid = np.zeros(size, np.float32), np.zeros(size, np.bool_)
        if entry.depth is not None:
            depth, valid = read_depth(entry.depth, self.depth_scale)
            check_aspect(entry, size, (depth.shape[0], depth.shape[1]))
            depth, valid = _to_raster(depth, valid, size)
        return Record(
            image=image,
            depth=depth,
            valid=valid,
            intrinsics=self._intrinsics_of(entry, size),
            unit=self.unit,
            caption=self._captions(entry.name),
            source=self.root.resolve().name,
            id=entry.name,
        )


@dataclass(frozen=True, kw_only=True)
class FolderDataset(Dataset):
    """The data set of a folder. depth_scale, captions: see `ImageFolder`."""

    depth_scale: float | None = None
    captions: Path | None = None

    def with_options(self, options: Mapping[str, str]) -> Dataset:
        """Returns the data set with options. Raises UserError for an unknown or invalid one."""
        for name in options:
            if name not in _OPTIONS:
                hint = f"known are {', '.join(_OPTIONS)}"
                raise UserError(f"a folder has no option {name!r}", hint=hint)
        unit = options.get("unit", self.unit)
        if unit not in get_args(Unit):
            hint = f"choose one of {', '.join(get_args(Unit))}"
            raise UserError(f"no unit is called {unit!r}", hint=hint)
        scale = options.get("depth_scale")
        return replace(
            self,
            unit=cast(Unit, unit),
            depth_scale=None if scale is None else _parse_scale(scale),
            captions=Path(options["captions"]) if "captions" in options else None,
        )

    def open(self, root: Path, split: str) -> WholeFolder:
        """Returns the records of the folder, see `Dataset.open`."""
        check_split(self, split)
        return WholeFolder(
            root, depth_scale=self.depth_scale, unit=self.unit, captions=self.captions
        )


def _parse_scale(text: str) -> float:
    try:
        return check_scale(float(text))
    except ValueError as error:
        hint = "it must be a positive number, e.g. 0.001"
        raise UserError(f"depth_scale is {text!r}", hint=hint) from error


def _to_raster(
    depth: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    finest = (max(size[0], depth.shape[0]), max(size[1], depth.shape[1]))
    if finest != depth.shape:
        depth = upsample_sparse(np.where(valid, depth, np.float32(0)), finest)
        valid = depth > 0
    return (depth, valid) if finest == size else downscale_depth(depth, valid, size)


DATASET = FolderDataset(
    name="folder",
    title="a folder of your own",
    unit="relative",
    splits=("train",),
    license="your own",
)
