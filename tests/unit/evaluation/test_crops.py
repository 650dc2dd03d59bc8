"""Crops: published boxes, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from modality_forcing.errors import UserError
from modality_forcing.evaluation import crops


def box(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert mask.sum() == len(rows) * len(columns)
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_boxes_equal_published_ones():
    assert box(crops.nyu_eigen(480, 640)) == (45, 471, 41, 601)
    assert box(crops.kitti_eigen(352, 1216)) == (117, 321, 43, 1172)


def test_benchmark_crop_is_bottom_center():
    frame = np.arange(375 * 1242).reshape(375, 1242)
    kept = crops.kitti_benchmark(frame)
    assert kept.shape == (352, 1216)
    assert kept[0, 0] == frame[23, 13] and kept[-1, -1] == frame[374, 1228]
    assert crops.kitti_benchmark(np.zeros((370, 1224, 3))).shape == (352, 1216, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: crops.nyu_eigen(240, 320),
        lambda: crops.kitti_benchmark(np.zeros((100, 100))),
        lambda: crops.kitti_eigen(1, 1),
    ],
)
def test_frames_of_another_size_are_refused(call):
    with pytest.raises(UserError):
        call()
