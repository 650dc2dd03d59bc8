"""SUN RGB-D from its exact encoding: millimeters with rotated bits, separate frames of NYUv2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.records import Notes
from modality_forcing.datasets.sunrgbd import DATASET
from tests import layouts


def scene(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Writes a scene; returns its image and millimeters."""
    image = layouts.image(folder / "image/0001.jpg", 4, 6)
    millimeters = (
        layouts.RNG.integers(1, 65536, (4, 6)) * (layouts.RNG.random((4, 6)) < 0.7)
    ).astype(np.uint16)
    layouts.stored(folder / "depth/0001_abs.png", (millimeters << 3) | (millimeters >> 13))
    layouts.counts(folder / "depth_bfx/0001_abs.png", 4, 6)
    layouts.text(folder / "intrinsics.txt", "5.5 0.0 3.25 \n0.0 5.5 2.5 \n0.0 0.0 1.0 \n")
    layouts.junk(folder / "image/._0001.jpg")
    return image, millimeters


def test_rotated_bits_are_decoded(tmp_path: Path):
    _, millimeters = scene(tmp_path / "kv2/kinect2data/000002_2014-05-26")
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "kv2/kinect2data/000002_2014-05-26/image/0001"
    np.testing.assert_array_equal(record.depth, (millimeters / 1000).astype(np.float32))
    np.testing.assert_array_equal(record.intrinsics, [[5.5, 0, 2.25], [0, 5.5, 1.5], [0, 0, 1]])


def test_frames_of_nyuv2_are_only_in_all(tmp_path: Path):
    scene(tmp_path / "kv1/NYUdata/NYU0001")
    scene(tmp_path / "kv1/b3dodata/img_0063")
    assert "holds no frame of SUN RGB-D's without_nyu split" in layouts.refused(
        DATASET, tmp_path / "kv1/NYUdata"
    )
    assert [record.id for record in layouts.records(DATASET, tmp_path)] == [
        "kv1/b3dodata/img_0063/image/0001"
    ]
    assert len(layouts.records(DATASET, tmp_path, "every")) == 2
    (tmp_path / "kv1/NYUdata/NYU0001/intrinsics.txt").unlink()
    source = DATASET.open(tmp_path, "every")
    assert isinstance(source, Notes) and len(source) == 1
    alone = "1 of 2 images have no intrinsics.txt (kv1/NYUdata/NYU0001/image/0001.jpg)"
    assert source.notes() == [f"{tmp_path}: {alone}"]


@pytest.mark.parametrize("content", ["", "1 2 3", "a b c d e f g h i"])
def test_damaged_camera_is_reported(tmp_path: Path, content: str):
    scene(tmp_path / "a")
    layouts.text(tmp_path / "a/intrinsics.txt", content)
    assert "intrinsics.txt: is not nine numbers" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
