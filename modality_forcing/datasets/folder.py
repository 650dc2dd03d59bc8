"""A folder of one's own pictures, as `data.folder.ImageFolder` lays it out, whole instead of cropped to squares.

Options, each `--option NAME=VALUE` of mforce prepare: depth_scale (unit per stored number, 0.001 for millimetres), unit
(metric, sfm or relative), captions (a captions file elsewhere). Depth of another size than its picture is brought to the
raster of the picture: a coarser map as points, never interpolated, a finer one picked. Pictures without depth are
text-to-image records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast, get_args

import numpy as np

from modality_forcing.data.files import check_scale, read_depth, read_image
from modality_forcing.data.folder import ImageFolder, check_aspect
from modality_forcing.data.records import Record, RecordSource, Unit
from modality_forcing.data.resize import downscale_depth
from modality_forcing.datasets.common.lazy import upsample_sparse
from modality_forcing.datasets.registry import Dataset, check_split
from modality_forcing.errors import UserError

_OPTIONS = ("depth_scale", "unit", "captions")


@dataclass(frozen=True)
class WholeFolder(ImageFolder):
    """The pictures and depth of a folder in the raster of the upright picture; `resolution` is not used."""

    resolution: int = 1

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        image = read_image(entry.image)
        size = (image.shape[0], image.shape[1])
        depth, valid = np.zeros(size, np.float32), np.zeros(size, np.bool_)
        if entry.depth is not None:
            depth, valid = read_depth(entry.depth, self.depth_scale)
            check_aspect(entry, size, depth.shape)
            depth, valid = _in_raster(depth, valid, size)
        return Record(
            image=image,
            depth=depth,
            valid=valid,
            intrinsics=self._intrinsics(entry.name),
            unit=self.unit,
            caption=self._captions(entry.name),
            source=self.root.resolve().name,
            id=entry.name,
        )


@dataclass(frozen=True)
class FolderSet(Dataset):
    """The data set of a folder, which its options make another."""

    def adjusted(self, options: Mapping[str, str]) -> Dataset:
        """Returns the data set with options; raises UserError for one that is not known or makes no sense."""
        for name in options:
            if name not in _OPTIONS:
                raise UserError(
                    f"a folder has no option {name!r}", hint=f"known are {', '.join(_OPTIONS)}"
                )
        unit = options.get("unit", self.unit)
        if unit not in get_args(Unit):
            raise UserError(
                f"no unit is called {unit!r}", hint=f"choose one of {', '.join(get_args(Unit))}"
            )
        scale = options.get("depth_scale")
        captions = Path(options["captions"]) if "captions" in options else None
        opened = partial(
            _open,
            scale=None if scale is None else _number(scale),
            unit=cast(Unit, unit),
            captions=captions,
        )
        return replace(self, unit=cast(Unit, unit), open=opened)


def _open(
    root: Path,
    split: str,
    scale: float | None = None,
    unit: Unit = "relative",
    captions: Path | None = None,
) -> RecordSource:
    check_split(DATASET, split)
    return WholeFolder(root, depth_scale=scale, unit=unit, captions=captions)


def _number(text: str) -> float:
    try:
        return check_scale(float(text))
    except ValueError as error:
        raise UserError(
            f"depth_scale is {text!r}", hint="it must be a positive number, e.g. 0.001"
        ) from error


def _in_raster(
    depth: np.ndarray, valid: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    finest = (max(size[0], depth.shape[0]), max(size[1], depth.shape[1]))
    if finest != depth.shape:
        depth = upsample_sparse(np.where(valid, depth, np.float32(0)), finest)
        valid = depth > 0
    return (depth, valid) if finest == size else downscale_depth(depth, valid, size)


DATASET = FolderSet("folder", "a folder of one's own", "relative", ("train",), "one's own", _open)
