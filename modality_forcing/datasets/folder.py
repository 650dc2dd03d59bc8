"""A folder of a user's own images, in the layout of `data.folder.ImageFolder` but uncropped.

Options, each `--option NAME=VALUE` of mforce prepare: depth_scale (unit per count, 0.001 for
millimeters), depth_invalid (a stored number that means unknown), depth_max (in units),
depth_orientation (upright or stored, where EXIF orientations differ), unit (metric, sfm or
relative), captions (a captions file elsewhere). Depth of another size than its image is resampled
to the image: a coarser map as points, never interpolated, a finer one picked. Images without depth
are text-to-image records.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from modality_forcing.data.folder import ImageFolder
from modality_forcing.data.pairs import Orientation
from modality_forcing.data.records import Record, Unit
from modality_forcing.data.resize import downscale_depth
from modality_forcing.datasets.common.lazy import upsample_sparse
from modality_forcing.datasets.registry import Dataset, check_split
from modality_forcing.errors import UserError

_NUMBERS = ("depth_scale", "depth_invalid", "depth_max")
_CHOICES = {"depth_orientation": get_args(Orientation), "unit": get_args(Unit)}


@dataclass(frozen=True)
class WholeFolder(ImageFolder):
    """Uncropped images and depth of a folder; `resolution` is unused."""

    resolution: int = 1

    def __getitem__(self, index: int) -> Record:
        record = self._read(index)
        size = (record.image.shape[0], record.image.shape[1])
        depth, valid = _to_raster(record.depth, record.valid, size)
        return replace(record, depth=depth, valid=valid)


@dataclass(frozen=True, kw_only=True)
class FolderDataset(Dataset):
    """The data set of a folder. arguments: of `ImageFolder`, by the names of the options."""

    arguments: Mapping[str, Any] = field(default_factory=dict)

    def with_options(self, options: Mapping[str, str]) -> Dataset:
        """Returns the data set with options. Raises UserError for an unknown or invalid one."""
        super().with_options(options)
        arguments = {name: _parse(name, text) for name, text in options.items()}
        return replace(self, unit=arguments.get("unit", self.unit), arguments=arguments)

    def open(self, root: Path, split: str) -> WholeFolder:
        """Returns the records of the folder, see `Dataset.open`."""
        check_split(self, split)
        return WholeFolder(root, **{"unit": self.unit, **self.arguments})


def _parse(option: str, text: str) -> object:
    if option == "captions":
        return Path(text)
    if option in _CHOICES:
        if text not in _CHOICES[option]:
            hint = f"choose one of {', '.join(filter(None, _CHOICES[option]))}"
            raise UserError(f"no {option} is called {text!r}", hint=hint)
        return text
    try:
        number = float(text)
    except ValueError as error:
        raise UserError(f"{option} is {text!r}", hint="it must be a number") from error
    if option == "depth_invalid" or 0 < number < math.inf:
        return number
    raise UserError(f"{option} is {text}", hint="it must be a positive number")


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
    options=(*_NUMBERS, *_CHOICES, "captions"),
    license="your own",
)
