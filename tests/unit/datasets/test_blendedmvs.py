"""BlendedMVS from its exact encoding: bottom-up PFM, cameras in MVSNet's format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.datasets.blendedmvs import DATASET
from tests import layouts

PROJECT = "5a3ca9cb270f0e3f14d0eddb"
POSE = "extrinsic\n1 0 0 0 \n0 1 0 0 \n0 0 1 0 \n0 0 0 1 \n\n"
CAMERA = POSE + "intrinsic\n575.5 0 3.5 \n0 575.25 2.5 \n0 0 1 \n\n{} 0.1 128 20.5 \n"


def frame(folder: Path, number: int = 0, nearest: str = "0.5") -> np.ndarray:
    """Writes one frame with a hole; returns its depth."""
    depth = layouts.RNG.uniform(0.5, 20, (6, 8)).astype(np.float32)
    depth[0, :3] = 0
    layouts.image(folder / f"blended_images/{number:08}.jpg", 6, 8)
    layouts.image(folder / f"blended_images/{number:08}_masked.jpg", 6, 8)
    layouts.pfm(folder / f"rendered_depth_maps/{number:08}.pfm", depth)
    layouts.text(folder / f"cams/{number:08}_cam.txt", CAMERA.format(nearest))
    return depth


@pytest.mark.parametrize(
    ("split", "place"),
    [
        ("train", "BlendedMVG_training.txt"),
        ("train", "project_lists/BlendedMVS_training.txt"),
        ("val", ""),
    ],
)
def test_depth_and_camera(tmp_path: Path, split: str, place: str):
    depth = frame(tmp_path / PROJECT, 3)
    frame(tmp_path / "57f8d9bbe73f6760f10e916a")  # in another split
    layouts.text(
        tmp_path / (place or "validation_list.txt"), f"{PROJECT}\n5000000000000000000000ff\n"
    )
    (record,) = layouts.records(DATASET, tmp_path, split)
    assert record.id == f"{PROJECT}/blended_images/00000003" and record.unit == "sfm"
    np.testing.assert_array_equal(record.depth, depth)
    assert record.valid.sum() == 45
    np.testing.assert_array_equal(record.intrinsics, [[575.5, 0, 3.5], [0, 575.25, 2.5], [0, 0, 1]])


def test_unusable_frames_are_reported(tmp_path: Path):
    layouts.text(tmp_path / "training_list.txt", PROJECT)
    folder = tmp_path / PROJECT
    for nearest in ("0", "-1.5", "nan"):
        frame(folder, nearest=nearest)
        assert f"its nearest depth is {nearest}" in layouts.refused(DATASET, tmp_path)
    frame(folder)
    layouts.pfm(folder / "rendered_depth_maps/00000000.pfm", np.zeros((6, 8)))
    assert "its depth has no valid pixel" in layouts.refused(DATASET, tmp_path)
    for invalid in ("", "intrinsic\n1 2 3", CAMERA.format("x")):
        layouts.text(folder / "cams/00000000_cam.txt", invalid)
        assert "is not a camera as MVSNet writes it" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
    assert "no validation_list.txt" in layouts.refused(DATASET, tmp_path, "val")
