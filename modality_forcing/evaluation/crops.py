"""Crops of the older protocols: Eigen et al. (2014) for NYUv2 and KITTI, and KITTI's benchmark.

Corners given as fractions of the frame are truncated to whole pixels, int(fraction * size), with
the far end excluded, as in cleinc/bts (pytorch/bts_eval.py) and prs-eth/Marigold
(src/dataset/kitti_dataset.py, nyu_dataset.py), the sources of these numbers.
"""

from __future__ import annotations

import numpy as np

from modality_forcing.errors import UserError

_KITTI_EIGEN = (0.3324324, 0.91351351, 0.0359477, 0.96405229)  # top, bottom, left, right
_KITTI_BENCHMARK = (352, 1216)  # KITTI's frames differ in size by a few pixels


def nyu_eigen(height: int, width: int) -> np.ndarray:
    """Returns the evaluation mask of an NYUv2 frame, bool [h w]: rows 45-470, columns 41-600.

    Raises UserError unless the frame has 480 x 640 pixels: the crop is in pixels of that size.
    """
    if (height, width) != (480, 640):
        raise UserError(
            f"a frame of {height} x {width} is not NYUv2's",
            hint="the Eigen crop needs 480 x 640 pixels",
        )
    return _box(height, width, 45, 471, 41, 601)


def kitti_eigen(height: int, width: int) -> np.ndarray:
    """Returns the evaluation mask of Eigen et al. (2014) for a KITTI frame, bool [h w].

    Public codes differ on the frame it refers to: Marigold uses the `kitti_benchmark` crop, BTS the
    whole frame. Raises UserError if the frame is too small.
    """
    top, bottom, left, right = _KITTI_EIGEN
    rows = (int(top * height), int(bottom * height))
    columns = (int(left * width), int(right * width))
    mask = _box(height, width, *rows, *columns)
    if not mask.any():
        raise UserError(
            f"a frame of {height} x {width} is too small to crop",
            hint="give frames as KITTI has them",
        )
    return mask


def kitti_benchmark(frame: np.ndarray) -> np.ndarray:
    """Returns the bottom center 352 x 1216 pixels of a frame [h w ...].

    With an odd margin, the smaller half is cut on the left. Raises UserError for smaller frames.
    """
    height, width = _KITTI_BENCHMARK
    rows, columns = frame.shape[:2]
    if rows < height or columns < width:
        raise UserError(
            f"a frame of {rows} x {columns} is too small for KITTI's {height} x {width}",
            hint="give frames as KITTI has them",
        )
    left = (columns - width) // 2
    return frame[rows - height :, left : left + width]


def _box(height: int, width: int, *box: int) -> np.ndarray:
    top, bottom, left, right = box
    mask = np.zeros((height, width), np.bool_)
    mask[top:bottom, left:right] = True
    return mask
