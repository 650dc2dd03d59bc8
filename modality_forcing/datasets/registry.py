"""The known data sets. Each module of this folder describes one, as its DATASET."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from modality_forcing.data.records import Record, RecordSource, Unit
from modality_forcing.datasets.common.camera_option import CameraOption, parse_camera
from modality_forcing.datasets.common.lazy import DatasetInfo, LazySource, require_dir
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.errors import UserError
from modality_forcing.paths import resolve

T = TypeVar("T")

# Each is a module modality_forcing/datasets/<name>.py, imported on demand.
NAMES = (
    *("argoverse2", "aria_synthetic", "arkitscenes", "blendedmvs", "colmap", "ddad", "diode"),
    *("eth3d", "folder", "foundationstereo", "hypersim", "kitti_depth", "kitti_raw", "megadepth"),
    *("middlebury", "nyuv2", "parallel_domain", "redwood", "scannet", "seven_scenes", "sunrgbd"),
    *("tartanair", "taskonomy", "tfds_images", "tum", "waymo", "webdataset"),
)
# Packages that the base installation lacks, and the extra that installs them.
_REQUIRES: Mapping[str, tuple[str, str]] = {
    "argoverse2": ("pyarrow", "datasets"),
    "hypersim": ("h5py", "datasets"),
    "megadepth": ("h5py", "datasets"),
    "tfds_images": ("tensorflow_datasets", "tfds"),
}


@dataclass(frozen=True, kw_only=True)
class Dataset(ABC):
    """A data set as its authors distribute it.

    The docstring of its module states layout, unit, invalid values and source.

    name: on the command line, and the `source` of every record.
    unit: of the depth. splits: the first one is the default. license: a short name. options: the
    names of those that `with_options` takes.
    """

    name: str
    title: str
    splits: tuple[str, ...]
    license: str
    unit: Unit = "metric"
    options: tuple[str, ...] = ()

    @abstractmethod
    def open(self, root: Path, split: str) -> RecordSource:
        """Returns the records of a split. Record i depends only on i, in any process.

        Raises UserError if the folder does not hold the data set or lacks the list of a split.
        Reading a record raises UserError if one of its files is damaged or missing.
        """

    def with_options(self, options: Mapping[str, str]) -> Dataset:
        """Returns the data set with options. Raises UserError for an unknown or invalid one."""
        for name in options:
            if name not in self.options:
                known = f"known are {', '.join(self.options)}" if self.options else ""
                raise UserError(
                    f"{self.title} has no option {name!r}", hint=known or "leave --option out"
                )
        return self


@dataclass(frozen=True, kw_only=True)
class FrameDataset(Dataset, Generic[T]):
    """A data set whose frames are listed first and read on demand.

    layout: the expected files, for errors; "SPLIT" stands for the name of the split.
    list_frames: from root and split to the frames; adds what it leaves out to the third argument.
    read_frame: makes a record of one frame.
    camera: of all images, stated by the option of this name.
    """

    layout: str
    list_frames: Callable[[Path, str, Unused], Iterable[T]]
    read_frame: Callable[[DatasetInfo, T], Record]
    camera: CameraOption | None = None

    def with_options(self, options: Mapping[str, str]) -> Dataset:
        """Returns the data set with options. Raises UserError for an unknown or invalid one."""
        super().with_options(options)
        return replace(self, camera=parse_camera(options["camera"])) if options else self

    def open(self, root: Path, split: str) -> LazySource[T]:
        """Returns the records of a split, see `Dataset.open`."""
        # What a reader takes from folder names must not depend on how the root is spelled.
        root = resolve(require_dir(root, self.title))
        title = f"{self.title}'s {split} split" if len(self.splits) > 1 else self.title
        layout = self.layout.replace("SPLIT", split)
        unused = Unused(root)
        frames = tuple(self.list_frames(root, split, unused))
        if not frames:
            what = ": ".join((f"holds no frame of {title}", *unused.reasons()[:1]))
            raise UserError(what, where=root, hint=f"its layout is {layout}")
        info = DatasetInfo(self.name, self.unit, root, self.camera)
        lines = tuple(f"{root}: {reason}" for reason in unused.reasons())
        return LazySource(frames, partial(self.read_frame, info), lines)


def find_dataset(name: str) -> Dataset:
    """Returns the data set of that name.

    Raises UserError with the nearest and all names, or with the extra that it needs.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1)
        guess = f"did you mean {near[0]}? Known" if near else "known"
        hint = f"{guess} are {', '.join(NAMES)}"
        raise UserError(f"no data set is called {name!r}", hint=hint)
    package, extra = _REQUIRES.get(name, ("", ""))
    if package and importlib.util.find_spec(package) is None:
        hint = f"pip install 'modality_forcing[{extra}]'"
        raise UserError(f"data set {name} needs the package {package}", hint=hint)
    return importlib.import_module(f"modality_forcing.datasets.{name}").DATASET


def check_split(dataset: Dataset, split: str) -> str:
    """Returns the split, or the first one for "". Raises UserError for an unknown split."""
    chosen = split or dataset.splits[0]
    if chosen not in dataset.splits:
        hint = f"choose one of {', '.join(dataset.splits)}"
        raise UserError(f"{dataset.title} has no split {split!r}", hint=hint)
    return chosen
