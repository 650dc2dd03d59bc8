"""DIODE from its exact encoding: arrays with a channel, and masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.datasets.diode import DATASET
from tests import layouts

SCAN = "indoors/scene_00000/scan_00000/00000_00000_indoors_000_000"


def write(root: Path, scan: str = SCAN) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Writes a view with depth outside the mask and a hole; returns image, depth, mask."""
    image = layouts.image(root / f"{scan}.png", 6, 8)
    depth = layouts.RNG.uniform(0.5, 50, (6, 8, 1)).astype(np.float32)
    mask = (layouts.RNG.random((6, 8)) < 0.7).astype(np.float32)
    depth[0, 0], mask[0, 0] = 0, 1
    layouts.array(root / f"{scan}_depth.npy", depth)
    layouts.array(root / f"{scan}_depth_mask.npy", mask)
    return image, depth[..., 0], mask


def test_depth_is_valid_inside_the_mask(tmp_path: Path):
    image, depth, mask = write(tmp_path / "train")
    write(tmp_path / "val", SCAN.replace("indoors", "outdoor"))
    layouts.junk(tmp_path / f"train/{SCAN}".replace("/00000_00000", "/._00000_00000")).rename(
        tmp_path / f"train/{Path(SCAN).parent}/._{Path(SCAN).name}.png"
    )
    (record,) = layouts.records(DATASET, tmp_path, "train")
    assert record.id == f"train/{SCAN}"
    np.testing.assert_array_equal(record.image, image)
    np.testing.assert_array_equal(record.depth, np.where(mask != 0, depth, 0))
    assert record.valid.sum() == mask.sum() - 1
    assert [record.id for record in layouts.records(DATASET, tmp_path, "val")] == [
        f"val/{SCAN.replace('indoors', 'outdoor')}"
    ]


def test_scored_frames_are_not_trained_on(tmp_path: Path):
    write(tmp_path / "train", official_names("diode")[0])
    assert "holds no frame of DIODE's train split" in layouts.refused(DATASET, tmp_path, "train")
    write(tmp_path / "train")
    assert len(layouts.records(DATASET, tmp_path, "train")) == 1


def test_intrinsics_are_rescaled_to_the_image(tmp_path: Path):
    write(tmp_path / "train")
    scale = 8 / 1024
    expected = [
        [886.81 * scale, 0, 512.5 * scale - 0.5],
        [0, 927.06 * scale, 384.5 * scale - 0.5],
        [0, 0, 1],
    ]
    np.testing.assert_allclose(
        layouts.records(DATASET, tmp_path)[0].intrinsics, expected, rtol=1e-6
    )


def test_sizes_that_differ_are_reported(tmp_path: Path):
    write(tmp_path / "train")
    layouts.array(tmp_path / f"train/{SCAN}_depth.npy", np.ones((5, 8, 1), np.float32))
    assert "its image is 8 x 6 pixels and its depth 8 x 5" in layouts.refused(DATASET, tmp_path)
    layouts.array(tmp_path / f"train/{SCAN}_depth_mask.npy", np.ones((5, 8), np.float32))
    assert "depth_mask.npy: is 8 x 5 pixels" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
