"""FoundationStereo's rendered stereo pairs, the left picture with depth from its disparity.

Layout: SCENE/dataset/data/left/rgb/NNNN.jpg and left/disparity/NNNN.png, three digits to the base 255 (`read_base_255`),
0 where unknown. Neither focal length nor baseline were kept (NVlabs/FoundationStereo, issue 62): depth is the inverse of the
disparity, right up to a factor that differs with the picture ("relative"). Disparities near 0, of sky and far ground, give
depths without bound; the farthest hundredth of a picture's pixels is taken for unknown, but for those as far as the
rest of it ends. Source: NVlabs/FoundationStereo, scripts/vis_dataset.py.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_base_255, read_rgb
from modality_forcing.datasets.common.lazy import (
    DatasetInfo,
    LazySource,
    glob_paths,
    make_record,
    require_dir,
    require_nonempty,
)
from modality_forcing.datasets.registry import Dataset

NEAREST = 0.99  # the part of a picture's known pixels that is kept, from the nearest on
_TITLE = "the FoundationStereo dataset"


def _open(root: Path, split: str) -> LazySource[Path]:
    root = require_dir(root, _TITLE)
    pictures = [
        path
        for path in glob_paths(root, "*/dataset/data/left/rgb/*.jpg")
        if _disparity(path).is_file()
    ]
    layout = "SCENE/dataset/data/left/{rgb/NNNN.jpg, disparity/NNNN.png}"
    return LazySource(
        require_nonempty(pictures, root, _TITLE, layout),
        partial(_read, DatasetInfo("foundationstereo", "relative", root)),
    )


def _disparity(picture: Path) -> Path:
    return picture.parents[1] / "disparity" / f"{picture.stem}.png"


def depth_of(disparity: np.ndarray) -> np.ndarray:
    """Returns depth f32 [h w], 1 / disparity, 0 where that is unknown or among the farthest."""
    known = disparity > 0
    if not known.any():
        return np.zeros_like(disparity)
    least = np.quantile(disparity[known], 1 - NEAREST, method="lower")
    kept = known & (disparity >= least)
    return np.where(kept, 1 / np.where(kept, disparity, 1), 0).astype(np.float32)


def _read(info: DatasetInfo, picture: Path) -> Record:
    return make_record(
        info, picture, read_rgb(picture), depth_of(read_base_255(_disparity(picture)))
    )


DATASET = Dataset(
    "foundationstereo",
    "FoundationStereo",
    "relative",
    ("train",),
    "NVIDIA's, non-commercial",
    _open,
)
