"""Middlebury stereo: disparity in PFM, inf for invalid, offset principal points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.records import Notes
from modality_forcing.datasets.middlebury import DATASET, to_depth
from tests import layouts

CALIBRATION = """cam0=[3997.684 0 1176.728; 0 3997.684 1011.728; 0 0 1]
cam1=[3997.684 0 1307.839; 0 3997.684 1011.728; 0 0 1]
doffs=131.111
baseline=193.001
width=6
height=4
ndisp=280
isint=0
vmin=31
vmax=257
dyavg=0.918
dymax=1.516
"""


@pytest.mark.parametrize(
    ("place", "name"),
    [("Adirondack-perfect", "disp0.pfm"), ("trainingQ/Adirondack", "disp0GT.pfm")],
)
def test_disparity_becomes_depth(tmp_path: Path, place: str, name: str):
    scene = tmp_path / place
    disparity = layouts.RNG.uniform(31, 257, (4, 6)).astype(np.float32)
    disparity[0, :3] = np.inf, 0, -131.111
    image = layouts.image(scene / "im0.png", 4, 6)
    layouts.pfm(scene / name, disparity)
    layouts.text(scene / "calib.txt", CALIBRATION)
    layouts.text(tmp_path / "kept_back/calib.txt", CALIBRATION)  # without disparity
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == f"{place}/im0"
    np.testing.assert_array_equal(record.image, image)
    assert record.valid.sum() == 22 and not record.valid[0, 0] and not record.valid[0, 2]
    expected = 3997.684 * 0.193001 / (disparity.astype(np.float64) + 131.111)
    np.testing.assert_allclose(record.depth[record.valid], expected[record.valid], rtol=1e-6)
    np.testing.assert_allclose(
        record.intrinsics, [[3997.684, 0, 1176.728], [0, 3997.684, 1011.728], [0, 0, 1]], rtol=1e-7
    )


def test_one_of_two_disparity_maps_is_used(tmp_path: Path):
    layouts.image(tmp_path / "a/im0.png", 4, 6)
    for name, value in (("disp0.pfm", 1), ("disp0GT.pfm", 2)):
        layouts.pfm(tmp_path / "a" / name, np.full((4, 6), value, np.float32))
    layouts.text(tmp_path / "a/calib.txt", CALIBRATION)
    (record,) = layouts.records(DATASET, tmp_path)
    np.testing.assert_allclose(record.depth, 3997.684 * 0.193001 / 132.111, rtol=1e-6)


def test_scenes_that_are_incomplete_are_counted(tmp_path: Path):
    for scene in "abc":
        layouts.image(tmp_path / scene / "im0.png", 4, 6)
    for scene in "ab":
        layouts.text(tmp_path / scene / "calib.txt", CALIBRATION)
    layouts.pfm(tmp_path / "a/disp0.pfm", np.ones((4, 6), np.float32))
    source = DATASET.open(tmp_path, "train")
    assert isinstance(source, Notes) and len(source) == 1
    assert source.notes() == [
        f"{tmp_path}: 1 of 2 scenes have no disp0.pfm (b/calib.txt)",
        f"{tmp_path}: 1 of 3 images have no calib.txt (c/im0.png)",
    ]


def test_nonfinite_and_nonpositive_depth_is_invalid():
    disparity = np.float32([[10, np.inf, -np.inf, np.nan, -5, -6]])
    np.testing.assert_array_equal(
        to_depth(disparity, 100, 2, 5), np.float32([[200 / 15, 0, 0, 0, 0, 0]])
    )


@pytest.mark.parametrize("line", ["cam0", "doffs", "baseline", "width", "height"])
def test_incomplete_calibration_is_reported(tmp_path: Path, line: str):
    layouts.image(tmp_path / "im0.png", 4, 6)
    layouts.pfm(tmp_path / "disp0.pfm", np.ones((4, 6), np.float32))
    layouts.text(tmp_path / "calib.txt", CALIBRATION.replace(f"{line}=", "x="))
    what = "calib.txt: lacks cam0, baseline, doffs, width or height"
    assert what in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
