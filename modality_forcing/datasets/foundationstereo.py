"""FoundationStereo: rendered stereo pairs, the left image with depth from its disparity.

Layout: SCENE/dataset/data/left/rgb/NNNN.jpg and left/disparity/NNNN.png, three digits to the base
255 (`read_base_255`), 0 where invalid. Neither focal length nor baseline were kept
(NVlabs/FoundationStereo, issue 62): depth is the inverse of the disparity, up to a factor that
differs between images ("relative"). Disparities near 0, of sky and far ground, give unbounded
depths. The farthest hundredth of an image's pixels is therefore invalid, except for those at the
distance of the cut.
Source: NVlabs/FoundationStereo, scripts/vis_dataset.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from modality_forcing.data.records import Record
from modality_forcing.datasets.common.formats import read_base_255, read_rgb
from modality_forcing.datasets.common.lazy import DatasetInfo, glob_paths, make_record
from modality_forcing.datasets.common.unused import Unused
from modality_forcing.datasets.registry import FrameDataset

KEPT_FRACTION = 0.99  # of the valid pixels of an image, from the nearest on


def _list_frames(root: Path, split: str, unused: Unused) -> Iterable[Path]:
    images = glob_paths(root, "*/dataset/data/left/rgb/*.jpg")
    maps = glob_paths(root, "*/dataset/data/left/disparity/*.png")
    return unused.with_depth(images, maps, _disparity_path)


def _disparity_path(image: Path) -> Path:
    return image.parents[1] / "disparity" / f"{image.stem}.png"


def to_depth(disparity: np.ndarray) -> np.ndarray:
    """Returns depth f32 [h w], 1 / disparity, 0 where invalid or among the farthest."""
    valid = disparity > 0
    if not valid.any():
        return np.zeros_like(disparity)
    least = np.quantile(disparity[valid], 1 - KEPT_FRACTION, method="lower")
    kept = valid & (disparity >= least)
    return np.where(kept, 1 / np.where(kept, disparity, 1), 0).astype(np.float32)


def _read_frame(info: DatasetInfo, path: Path) -> Record:
    disparity = read_base_255(_disparity_path(path))
    return make_record(info, path, read_rgb(path), to_depth(disparity))


DATASET = FrameDataset(
    name="foundationstereo",
    title="FoundationStereo",
    unit="relative",
    splits=("train",),
    license="NVIDIA's, non-commercial",
    layout="SCENE/dataset/data/left/{rgb/NNNN.jpg, disparity/NNNN.png}",
    list_frames=_list_frames,
    read_frame=_read_frame,
)
