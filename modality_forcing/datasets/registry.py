"""Which data sets are known, and the description that each module of this folder gives of its own."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modality_forcing.data.records import RecordSource, Unit
from modality_forcing.errors import UserError

# modality_forcing/datasets/<name>.py, which holds DATASET; imported when asked for.
NAMES = (
    "argoverse2",
    "aria_synthetic",
    "arkitscenes",
    "blendedmvs",
    "colmap",
    "ddad",
    "diode",
    "eth3d",
    "folder",
    "foundationstereo",
    "hypersim",
    "kitti_depth",
    "kitti_raw",
    "megadepth",
    "middlebury",
    "nyuv2",
    "parallel_domain",
    "redwood",
    "scannet",
    "seven_scenes",
    "sunrgbd",
    "tartanair",
    "taskonomy",
    "tfds_images",
    "tum",
    "waymo",
    "webdataset",
)
# Packages that the base installation does not bring, and the extra that does.
_NEEDS: Mapping[str, tuple[str, str]] = {
    "argoverse2": ("pyarrow", "datasets"),
    "hypersim": ("h5py", "datasets"),
    "megadepth": ("h5py", "datasets"),
    "tfds_images": ("tensorflow_datasets", "tfds"),
}


@dataclass(frozen=True)
class Dataset:
    """One data set as its authors distribute it. Its module's docstring tells layout, unit, invalid values and source.

    open: from the folder of the set and one of `splits` to its records, each of which depends on its index alone and may
    be read in any process. Raises UserError for a folder that does not hold the set and for a missing list of a split;
    reading a record raises UserError, naming the file, for one that is damaged or missing.
    """

    name: str  # on the command line, and of every record as `source`
    title: str
    unit: Unit  # of the depth of its records
    splits: tuple[str, ...]  # the first one is taken where none is named
    licence: str  # in a word: its terms are to be read at the source
    open: Callable[[Path, str], RecordSource]


def find_dataset(name: str) -> Dataset:
    """Returns the data set of that name, or raises UserError with the nearest and all known names, or the missing extra."""
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise UserError(
            f"no data set is called {name!r}", hint=f"{guess}Known are {', '.join(NAMES)}"
        )
    package, extra = _NEEDS.get(name, ("", ""))
    if package and importlib.util.find_spec(package) is None:
        raise UserError(
            f"data set {name} needs the package {package}",
            hint=f"pip install 'modality_forcing[{extra}]'",
        )
    return importlib.import_module(f"modality_forcing.datasets.{name}").DATASET


def check_split(dataset: Dataset, split: str) -> str:
    """Returns the split, the first one for "", or raises UserError with those there are."""
    chosen = split or dataset.splits[0]
    if chosen not in dataset.splits:
        raise UserError(
            f"{dataset.title} has no split {split!r}",
            hint=f"choose one of {', '.join(dataset.splits)}",
        )
    return chosen
