"""MegaDepth from its exact encoding: HDF5 depth, ordinal maps refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.datasets.megadepth import DATASET
from tests import layouts

h5py = pytest.importorskip("h5py")


@pytest.mark.parametrize("above", ["", "MegaDepth_v1/", "phoenix/S6/zl548/MegaDepth_v1/"])
def test_depth(tmp_path: Path, above: str):
    folder = tmp_path / above / "0000/dense0"
    depth = layouts.RNG.uniform(0.5, 20, (4, 6)).astype(np.float32) * (
        layouts.RNG.random((4, 6)) < 0.6
    )
    image = layouts.image(folder / "imgs/1_o.jpg", 4, 6)
    layouts.junk(folder / "imgs/._1_o.jpg")
    layouts.hdf5(folder / "depths/1_o.h5", "depth", depth.astype(np.float32))
    layouts.hdf5(folder / "depths/2_o.h5", "depth", depth)  # without an image
    (record,) = layouts.records(DATASET, tmp_path)
    assert (
        record.id == "0000/dense0/imgs/1_o"
        and record.unit == "sfm"
        and record.image.shape == image.shape
    )
    np.testing.assert_array_equal(record.depth, depth.astype(np.float32))
    assert np.isnan(record.intrinsics).all()


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.float32([[1, -1], [0, 2]]), "holds only the order of depths"),
        (np.zeros((2, 2), np.float32), "its depth has no valid pixel"),
        (np.ones((2, 2, 1), np.float32), "depth of shape (2, 2, 1), not [h w]"),
        (np.zeros((0, 2), np.float32), "depth of shape (0, 2), not [h w]"),
    ],
)
def test_invalid_depth_maps_are_reported(tmp_path: Path, depth: np.ndarray, message: str):
    layouts.image(tmp_path / "0000/dense0/imgs/1.jpg", 2, 2)
    layouts.hdf5(tmp_path / "0000/dense0/depths/1.h5", "depth", depth)
    assert message in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
