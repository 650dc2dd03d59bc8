"""ScanNet from its exact encoding: millimeters, splits, without rooms of the evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.datasets.scannet import DATASET, evaluation_rooms, room_of
from tests import layouts

EYE = "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"
CAMERA = "14.4 0 7.9 0\n0 14.5 6.1 0\n0 0 1 0\n0 0 0 1\n"


def scan(folder: Path, *numbers: str, size: tuple[int, int] = (12, 16)) -> dict[str, np.ndarray]:
    """Writes a scan; returns the counts of its frames."""
    layouts.text(folder / "intrinsic/intrinsic_depth.txt", CAMERA)
    for number in numbers:
        layouts.image(folder / f"color/{number}.jpg", *size)
        layouts.text(folder / f"pose/{number}.txt", EYE)
    return {number: layouts.counts(folder / f"depth/{number}.png", 12, 16) for number in numbers}


def test_frames_are_in_recording_order_and_depth_in_millimeters(tmp_path: Path):
    written = scan(tmp_path / "scans/scene0000_00", "0", "2", "10")
    layouts.image(tmp_path / "scans/scene0000_00/color/11.jpg", 12, 16)  # without depth
    layouts.counts(tmp_path / "scans/scene0000_00/depth/12.png", 12, 16)  # without an image
    layouts.text(tmp_path / "scannetv2_train.txt", "scene0000_00\nscene0000_01\n")
    records = layouts.records(DATASET, tmp_path)
    assert [record.id for record in records] == [
        f"scans/scene0000_00/depth/{number}" for number in ("0", "2", "10")
    ]
    for record, counts in zip(records, written.values(), strict=True):
        np.testing.assert_array_equal(record.depth, (counts / 1000).astype(np.float32))
        np.testing.assert_allclose(
            record.intrinsics, [[14.4, 0, 7.9], [0, 14.5, 6.1], [0, 0, 1]], rtol=1e-6
        )


def test_image_is_resized_to_the_resolution_of_depth(tmp_path: Path):
    folder = tmp_path / "scene0000_00"
    scan(folder, "0", size=(968, 1296))
    layouts.counts(folder / "depth/0.png", 480, 640)
    layouts.text(tmp_path / "splits/scannetv2_train.txt", "scene0000_00\n")
    camera = CAMERA.replace("7.9", "318.9").replace("6.1", "242.7")
    layouts.text(folder / "intrinsic/intrinsic_depth.txt", camera)
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.image.shape == (480, 640, 3) and np.abs(record.image.astype(int) - 90).max() < 3
    layouts.image(folder / "color/0.jpg", 480, 480)
    assert "0.png: is 640 x 480 pixels, but its image 0.jpg 480 x 480" in layouts.refused(
        DATASET, tmp_path
    )


def test_evaluation_rooms_are_in_no_split(tmp_path: Path):
    scored = {name.partition("/")[0] for name in official_names("scannet")}
    assert len(scored) == 271 and {room_of(scene) for scene in scored} == evaluation_rooms()
    for split in DATASET.splits:
        layouts.text(
            tmp_path / f"scannetv2_{split}.txt", "scene0000_00\nscene0011_00\nscene0011_07\n"
        )
    for name in (
        "scene0000_00",
        "scene0011_00",
        "scene0011_07",
    ):  # the last is another scan of a scored room
        scan(tmp_path / "scans" / name, "0")
    for split in DATASET.splits:
        assert [
            record.id.split("/")[1] for record in layouts.records(DATASET, tmp_path, split)
        ] == ["scene0000_00"]


@pytest.mark.parametrize("split", DATASET.splits)
def test_missing_list_is_reported(tmp_path: Path, split: str):
    scan(tmp_path / "scans/scene0000_00", "0")
    assert (
        f"no scannetv2_{split}.txt, the list of this split of ScanNet; put it there"
        in layouts.refused(DATASET, tmp_path, split)
    )


def test_frames_without_tracking_are_skipped_and_invalid_cameras_reported(tmp_path: Path):
    folder = tmp_path / "scans/scene0000_00"
    scan(folder, "0")
    layouts.text(tmp_path / "scannetv2_train.txt", "scene0000_00\n")
    layouts.text(folder / "pose/0.txt", EYE.replace("1", "-inf"))
    assert "pose/0.txt: the pose is not finite: tracking was lost" in layouts.refused(
        DATASET, tmp_path
    )
    layouts.text(folder / "pose/0.txt", EYE)
    layouts.text(folder / "intrinsic/intrinsic_depth.txt", CAMERA.replace("14.4", "nan"))
    assert "depth/0.png: its intrinsics are not those of a camera" in layouts.refused(
        DATASET, tmp_path
    )


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
