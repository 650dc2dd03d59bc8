"""FoundationStereo: disparity in base 255, depth up to a factor."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.datasets.foundationstereo import DATASET, to_depth
from tests import layouts


def write(folder: Path, thousandths: np.ndarray) -> None:
    """Writes a frame of disparities in thousandths of a pixel."""
    layouts.image(folder / "rgb/0000.jpg", *thousandths.shape)
    digits = np.stack([thousandths // 65025, thousandths // 255 % 255, thousandths % 255], axis=-1)
    layouts.stored(folder / "disparity/0000.png", digits.astype(np.uint8))


def test_depth_is_the_inverse_of_disparity(tmp_path: Path):
    thousandths = layouts.RNG.permutation(np.arange(5000, 5400)).reshape(20, 20) * 20
    thousandths[0, :4] = 0
    write(tmp_path / "manipulation_v5_1/dataset/data/left", thousandths)
    # Without disparity.
    layouts.image(tmp_path / "manipulation_v5_1/dataset/data/left/rgb/0001.jpg", 20, 20)
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "manipulation_v5_1/dataset/data/left/rgb/0000" and record.unit == "relative"
    np.testing.assert_allclose(
        record.depth[record.valid], 1000 / thousandths[record.valid], rtol=1e-6
    )
    positive = thousandths > 0
    # Of 396, the farthest 3.
    assert record.valid.sum() == positive.sum() - 3 and np.isnan(record.intrinsics).all()
    assert thousandths[record.valid].min() > thousandths[positive & ~record.valid].max()


def test_farthest_disparities_are_invalid_but_a_wall_is_kept():
    disparity = np.full((10, 100), 20, np.float32)
    disparity[0, :5] = 0.001  # sky
    disparity[1, :5] = 0
    depth = to_depth(disparity)
    assert not depth[0, :5].any() and not depth[1, :5].any()
    np.testing.assert_array_equal(depth[2:], np.float32(0.05))
    assert np.count_nonzero(depth) == 990
    assert not to_depth(np.zeros((2, 2), np.float32)).any()


def test_map_without_valid_depth_is_reported(tmp_path: Path):
    write(tmp_path / "a/dataset/data/left", np.zeros((4, 4), int))
    assert "its depth has no valid pixel" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
