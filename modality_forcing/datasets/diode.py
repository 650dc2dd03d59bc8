"""DIODE: rooms and streets under a surveyor's scanner.

Layout, in SPLIT/ of the folder given: indoors|outdoor/scene_SSSSS/scan_CCCCC/NAME.png, NAME_depth.npy (metres along the
axis, [h w 1]) and NAME_depth_mask.npy, 0 where unknown. Masks leave the borders of things out, where the scanner mixes near
and far. Intrinsics: those of the authors' tools for 1024 x 768 pixels. Evaluation scores frames of val: train on
train alone. Source: diode-dataset.org, diode-dataset/diode-devkit.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from modality_forcing.data.records import Record
from modality_forcing.data.resize import scale_intrinsics
from modality_forcing.datasets.common.formats import check_same_size, read_array, read_rgb
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    pinhole,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset

_TITLE = "DIODE"
_CAMERA = pinhole(886.81, 927.06, 512, 384)


def _open(root: Path, split: str) -> LazySource[Path]:
    root = require_dir(root, _TITLE)
    pictures = [
        path
        for place in ("indoors", "outdoor")
        for path in glob_paths(root / split, f"{place}/scene_*/scan_*/*.png")
        if _beside(path, "depth").is_file()
    ]
    layout = f"{split}/indoors/scene_S/scan_C/{{NAME.png, NAME_depth.npy, NAME_depth_mask.npy}}"
    return LazySource(
        require_nonempty(pictures, root, _TITLE, layout),
        partial(_read, DatasetInfo("diode", "metric", root)),
    )


def _beside(picture: Path, what: str) -> Path:
    return picture.with_name(f"{picture.stem}_{what}.npy")


def _read(info: DatasetInfo, picture: Path) -> Record:
    image = read_rgb(picture)
    depth, mask = read_array(_beside(picture, "depth")), read_array(_beside(picture, "depth_mask"))
    check_same_size(image, mask, picture, _beside(picture, "depth_mask"))
    camera = scale_intrinsics(_CAMERA, (768, 1024), image.shape[:2])
    return make_record(info, picture, image, depth, mask != 0, camera)


DATASET = Dataset("diode", _TITLE, "metric", ("train", "val"), "MIT", _open)
