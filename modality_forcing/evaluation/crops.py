"""Which pixels the older protocols score: the crops of Eigen et al. (2014) and Garg et al. (2016), and depth caps.

Corners given as parts of the frame are cut down to whole pixels, int(part * size), and the far end is left out, as in
cleinc/bts (pytorch/bts_eval.py) and prs-eth/Marigold (src/dataset/kitti_dataset.py, nyu_dataset.py), whose numbers
these are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modality_forcing.errors import UserError

# (top, bottom, left, right) as parts of the frame
_EIGEN = (0.3324324, 0.91351351, 0.0359477, 0.96405229)
_GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)

_BENCHMARK = (
    352,
    1216,
)  # what the KITTI depth benchmark keeps of its frames, which differ by a few pixels


def nyu_eigen(height: int, width: int) -> np.ndarray:
    """Returns bool [h w], the part of an NYUv2 frame that is scored: rows 45 to 470, columns 41 to 600.

    Raises UserError if the frame has not 480 x 640 pixels, since the crop is in pixels of that size.
    """
    if (height, width) != (480, 640):
        raise UserError(
            f"a frame of {height} x {width} is not NYUv2's",
            hint="the Eigen crop is one of 480 x 640 pixels",
        )
    return _inside(height, width, 45, 471, 41, 601)


def kitti_eigen(height: int, width: int) -> np.ndarray:
    """Returns bool [h w], the part of a KITTI frame that Eigen et al. (2014) score.

    Of which frame, the public codes differ on: Marigold takes the part of the frame that `kitti_benchmark` leaves, BTS
    of the whole one. Raises UserError if the frame is too small to leave any pixel.
    """
    return _part(height, width, _EIGEN)


def kitti_garg(height: int, width: int) -> np.ndarray:
    """Returns bool [h w], the part of a KITTI frame that Garg et al. (2016) score; otherwise as `kitti_eigen`."""
    return _part(height, width, _GARG)


def kitti_benchmark(frame: np.ndarray) -> np.ndarray:
    """Returns the lower middle 352 x 1216 pixels of an image [h w 3], or of a map of depth or validity [h w].

    Of an odd rest in width, the smaller half is cut on the left. Raises UserError if the frame is smaller.
    """
    height, width = _BENCHMARK
    if frame.shape[0] < height or frame.shape[1] < width:
        size = f"{frame.shape[0]} x {frame.shape[1]}"
        raise UserError(
            f"a frame of {size} is too small for KITTI's {height} x {width}",
            hint="give frames as KITTI has them",
        )
    top, left = frame.shape[0] - height, (frame.shape[1] - width) // 2
    return frame[top:, left : left + width]


def within(depth: Any, valid: Any, least: float, most: float) -> Any:
    """Returns valid bool [...] where also least < depth < most; both ends are out, as in Marigold and BTS. NumPy or JAX."""
    return valid & (depth > least) & (depth < most)


def _part(height: int, width: int, part: tuple[float, float, float, float]) -> np.ndarray:
    top, bottom, left, right = part
    mask = _inside(
        height,
        width,
        int(top * height),
        int(bottom * height),
        int(left * width),
        int(right * width),
    )
    if not mask.any():
        raise UserError(
            f"a frame of {height} x {width} is too small to crop",
            hint="give frames as KITTI has them",
        )
    return mask


def _inside(height: int, width: int, top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros((height, width), np.bool_)
    mask[top:bottom, left:right] = True
    return mask
