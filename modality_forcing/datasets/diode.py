"""DIODE: indoor and outdoor scenes under a survey laser scanner.

Layout, in SPLIT/ of the root: indoors|outdoor/scene_SSSSS/scan_CCCCC/NAME.png, NAME_depth.npy
(meters along the axis, [h w 1]) and NAME_depth_mask.npy, 0 where invalid. The masks exclude object
borders, where the scanner mixes near and far. Intrinsics are those of the authors' tools for
1024 x 768 pixels, rescaled for others. The benchmark scores frames of val: they are not in train,
whatever their folder is called.
Source: diode-dataset.org, diode-dataset/diode-devkit.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from modality_forcing.data.intrinsics import pinhole, rescale_intrinsics
from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import check_same_size, read_array, read_rgb
from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset

_INTRINSICS = pinhole(886.81, 927.06, 512, 384)


def _list_frames(root: Path, split: str, unused: Unused) -> Iterable[Path]:
    scored = {Path(name).name for name in official_names("diode")} if split == "train" else set()
    for setting in ("indoors", "outdoor"):
        scan = f"{setting}/scene_*/scan_*"
        images = glob_paths(root / split, f"{scan}/*.png")
        maps = glob_paths(root / split, f"{scan}/*_depth.npy")
        yield from unused.with_depth(
            (path for path in images if path.stem not in scored),
            (path for path in maps if path.stem.removesuffix("_depth") not in scored),
            partial(_sibling, kind="depth"),
        )


def _sibling(image: Path, kind: str) -> Path:
    return image.with_name(f"{image.stem}_{kind}.npy")


def _read_frame(info: DatasetInfo, path: Path) -> Record:
    image = read_rgb(path)
    mask_path = _sibling(path, "depth_mask")
    depth, mask = read_array(_sibling(path, "depth")), read_array(mask_path)
    check_same_size(image, mask, path, mask_path)
    intrinsics = rescale_intrinsics(_INTRINSICS, (768, 1024), image.shape, path)
    return make_record(info, path, image, depth, valid=mask != 0, intrinsics=intrinsics)


DATASET = FrameDataset(
    name="diode",
    title="DIODE",
    splits=("train", "val"),
    license="MIT",
    layout="SPLIT/indoors/scene_S/scan_C/{NAME.png, NAME_depth.npy, NAME_depth_mask.npy}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
