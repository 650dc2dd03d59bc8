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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

import numpy as np

from modality_forcing.data.folder import ImageFolder
from modality_forcing.data.pairs import Orientation
from modality_forcing.data.records import Record, Unit
from modality_forcing.data.resize import downscale_depth
from modality_forcing.datasets.common.lazy import upsample_sparse
from modality_forcing.datasets.registry import Dataset, check_split
from modality_forcing.errors import UserError

_NUMBERS = ("depth_scale", "depth_invalid", "depth_max")
_OPTIONS = (*_NUMBERS, "depth_orientation", "unit", "captions")


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
    """The data set of a folder. Its fields: see `ImageFolder`."""

    depth_scale: float | None = None
    depth_invalid: float = 0.0
    depth_max: float = 0.0
    depth_orientation: Orientation = ""
    captions: Path | None = None

    def with_options(self, options: Mapping[str, str]) -> Dataset:
        """Returns the data set with options. Raises UserError for an unknown or invalid one."""
        for name in options:
            if name not in _OPTIONS:
                hint = f"known are {', '.join(_OPTIONS)}"
                raise UserError(f"a folder has no option {name!r}", hint=hint)
        unit = _choice("unit", options.get("unit", self.unit), get_args(Unit))
        turn = options.get("depth_orientation", self.depth_orientation)
        turn = _choice("depth_orientation", turn, get_args(Orientation))
        numbers = {name: _parse(name, options[name]) for name in _NUMBERS if name in options}
        return replace(
            self,
            unit=cast(Unit, unit),
            depth_orientation=cast(Orientation, turn),
            captions=Path(options["captions"]) if "captions" in options else None,
            **numbers,  # pyright: ignore[reportArgumentType]
        )

    def open(self, root: Path, split: str) -> WholeFolder:
        """Returns the records of the folder, see `Dataset.open`."""
        check_split(self, split)
        return WholeFolder(
            root,
            depth_scale=self.depth_scale,
            unit=self.unit,
            captions=self.captions,
            depth_invalid=self.depth_invalid,
            depth_max=self.depth_max,
            depth_orientation=self.depth_orientation,
        )


def _choice(option: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        hint = f"choose one of {', '.join(filter(None, choices))}"
        raise UserError(f"no {option} is called {value!r}", hint=hint)
    return value


def _parse(option: str, text: str) -> float:
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
    license="your own",
)
