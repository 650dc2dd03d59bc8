"""7-Scenes and sets like it: millimeters with two invalid values."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.resize import scale_intrinsics
from modality_forcing.datasets.seven_scenes import DATASET
from tests import layouts

POSE = "  7.0352107e-001\t 0 0 -9.1287065e-001\n0 1 0 0\n0 0 1 0\n0 0 0 1\n"


def frame(folder: Path, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Writes one frame with both invalid values; returns image and counts."""
    name = folder / f"frame-{number:06}"
    image = layouts.image(name.with_name(f"{name.name}.color.png"), 4, 6)
    counts = layouts.RNG.integers(1, 65535, (4, 6)).astype(np.uint16)
    counts[0, :2] = 0, 65535
    layouts.stored(name.with_name(f"{name.name}.depth.png"), counts)
    layouts.text(name.with_name(f"{name.name}.pose.txt"), POSE)
    layouts.junk(name.with_name(f"._{name.name}.color.png"))
    return image, counts


def test_depth_is_in_millimeters(tmp_path: Path):
    image, counts = frame(tmp_path / "chess/seq-01", 7)
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "chess/seq-01/frame-000007"
    np.testing.assert_array_equal(record.image, image)
    np.testing.assert_array_equal(
        record.depth, np.where(counts == 65535, 0, counts / 1000).astype(np.float32)
    )
    assert record.valid.sum() == 22
    expected = scale_intrinsics(pinhole(585, 585, 320, 240), (480, 640), (4, 6))
    np.testing.assert_allclose(record.intrinsics, expected, rtol=1e-6)


def test_splits_are_by_sequence(tmp_path: Path):
    for scene, sequence in (("chess", 1), ("chess", 3), ("chess", 12), ("fire", 1)):
        frame(tmp_path / scene / f"seq-{sequence:02}", 0)
    layouts.text(tmp_path / "chess/TrainSplit.txt", "sequence1\nsequence12\n")
    layouts.text(tmp_path / "chess/TestSplit.txt", "sequence3\n")
    assert "fire: no TrainSplit.txt" in layouts.refused(DATASET, tmp_path, "train")
    layouts.text(tmp_path / "fire/TrainSplit.txt", "sequence2\n")
    ids = [record.id for record in layouts.records(DATASET, tmp_path, "train")]
    assert ids == ["chess/seq-01/frame-000000", "chess/seq-12/frame-000000"]
    assert len(layouts.records(DATASET, tmp_path, "every")) == 4


def test_camera_file_is_found_beside_or_above_the_frames(tmp_path: Path):
    frame(tmp_path / "set/scene", 0)
    layouts.text(tmp_path / "camera-intrinsics.txt", "1 0 2.5\n0 1 1.5\n0 0 1\n")
    layouts.text(
        tmp_path / "set/camera-intrinsics.txt", " 5.4e+00\t 0\t 3.2e+00\t\n 0 5.4 1.5\n0 0 1\n"
    )
    roots = (tmp_path, tmp_path / "set", tmp_path / "set/scene")
    found = [layouts.records(DATASET, root)[0].intrinsics[0, 0] for root in roots]
    assert found == [np.float32(5.4)] * 3
    (tmp_path / "set/camera-intrinsics.txt").unlink()
    assert [layouts.records(DATASET, root)[0].intrinsics[0, 0] for root in roots] == [1] * 3
    layouts.text(tmp_path / "camera-intrinsics.txt", "1 0 320\n0 1 240\n0 0 1\n")
    assert "6 x 4 pixels, but camera-intrinsics.txt has its principal point" in layouts.refused(
        DATASET, tmp_path
    )
    (tmp_path / "camera-intrinsics.txt").unlink()
    assert "its camera is not known; put a camera-intrinsics.txt" in layouts.refused(
        DATASET, tmp_path
    )
    stated = DATASET.with_options({"camera": "5,6,2.5,1.5"})
    assert layouts.records(stated, tmp_path)[0].intrinsics[1, 1] == 6


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
