"""NYUv2: millimeters, without the white border and without filled depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.datasets.nyuv2 import DATASET
from tests import layouts


def test_marigold_archive_is_read(tmp_path: Path):
    image = layouts.image(tmp_path / "train/kitchen_0003/rgb_0045.png", 480, 640)
    counts = layouts.counts(tmp_path / "train/kitchen_0003/depth_0045.png", 480, 640)
    layouts.counts(tmp_path / "train/kitchen_0003/filled_0045.png", 480, 640)
    layouts.image(tmp_path / "test/kitchen_0004/rgb_0001.png", 480, 640)
    layouts.counts(tmp_path / "test/kitchen_0004/depth_0001.png", 480, 640)
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "train/kitchen_0003/rgb_0045"
    np.testing.assert_array_equal(record.image, image[8:472, 8:632])
    np.testing.assert_array_equal(record.depth, (counts / 1000).astype(np.float32)[8:472, 8:632])
    center = [325.58244941119034 - 8, 253.73616633400465 - 8]
    np.testing.assert_allclose(record.intrinsics[:2, 2], center, rtol=1e-6)
    (record,) = layouts.records(DATASET, tmp_path, "test")
    assert record.id == "test/kitchen_0004/rgb_0001"


def test_synchronized_frames_have_no_test_split(tmp_path: Path):
    layouts.image(tmp_path / "basement_0001a/rgb_00000.jpg", 480, 640)
    layouts.counts(tmp_path / "basement_0001a/sync_depth_00000.png", 480, 640)
    layouts.image(tmp_path / "basement_0001a/rgb_00001.jpg", 480, 640)  # without depth
    layouts.junk(tmp_path / "basement_0001a/._rgb_00000.jpg")
    (record,) = layouts.records(DATASET, tmp_path, "train")
    assert record.id == "basement_0001a/rgb_00000"
    assert "holds no frame of NYUv2" in layouts.refused(DATASET, tmp_path, "test")


def test_root_within_the_test_split_is_not_trained_on(tmp_path: Path):
    scene = tmp_path / "test/kitchen_0004"
    for number in ("0001", "9999"):  # the second is not in the official list
        layouts.stored(scene / f"rgb_{number}.png", np.zeros((480, 640, 3), np.uint8))
        layouts.stored(scene / f"depth_{number}.png", np.ones((480, 640), np.uint16))
    for root in (scene, tmp_path / "test"):
        (record,) = layouts.records(DATASET, root, "train")
        assert record.id.endswith("rgb_9999")
        (record,) = layouts.records(DATASET, root, "test")
        assert record.id.endswith("rgb_0001")


def test_archive_without_a_split_is_not_read_as_frames(tmp_path: Path):
    layouts.image(tmp_path / "test/kitchen_0004/rgb_0001.png", 480, 640)
    layouts.counts(tmp_path / "test/kitchen_0004/depth_0001.png", 480, 640)
    assert "holds no frame of NYUv2" in layouts.refused(DATASET, tmp_path, "train")


def test_another_size_has_another_camera(tmp_path: Path):
    layouts.image(tmp_path / "train/a/rgb_0001.png", 240, 320)
    layouts.counts(tmp_path / "train/a/depth_0001.png", 240, 320)
    assert "depth_0001.png: is 320 x 240 pixels, but its camera 640 x 480" in layouts.refused(
        DATASET, tmp_path
    )


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
