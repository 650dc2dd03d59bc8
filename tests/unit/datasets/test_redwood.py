"""Redwood's rooms from their exact encoding: millimeters, and a column-major camera matrix."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.resize import scale_intrinsics
from modality_forcing.datasets.redwood import DATASET
from tests import layouts


def test_depth_is_in_millimeters(tmp_path: Path):
    image = layouts.image(tmp_path / "room/color/00000.jpg", 4, 6)
    counts = layouts.counts(tmp_path / "room/depth/00000.png", 4, 6)
    layouts.image(tmp_path / "room/color/00001.jpg", 4, 6)  # without depth
    layouts.junk(tmp_path / "room/color/._00000.jpg")
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "room/color/00000" and np.abs(record.image - image.astype(int)).max() < 3
    np.testing.assert_array_equal(record.depth, (counts / 1000).astype(np.float32))
    expected = scale_intrinsics(pinhole(525, 525, 319.5, 239.5), (480, 640), (4, 6))
    np.testing.assert_allclose(record.intrinsics, expected, rtol=1e-6)


@pytest.mark.parametrize("place", ["", "room/"])
def test_column_major_camera_is_read(tmp_path: Path, place: str):
    layouts.image(tmp_path / "room/color/0.png", 4, 6)
    layouts.counts(tmp_path / "room/depth/0.png", 4, 6)
    camera = {"width": 6, "height": 4, "intrinsic_matrix": [5, 0, 0, 0, 6, 0, 2.5, 1.5, 1]}
    path = layouts.text(tmp_path / f"{place}camera_primesense.json", json.dumps(camera))
    (record,) = layouts.records(DATASET, tmp_path)
    np.testing.assert_array_equal(record.intrinsics, [[5, 0, 2.5], [0, 6, 1.5], [0, 0, 1]])
    # The folder of the recording as the root changes nothing.
    (record,) = layouts.records(DATASET, tmp_path / "room")
    assert record.intrinsics[0, 0] == 5
    path.write_text(json.dumps({**camera, "width": 12, "height": 8}))
    assert layouts.records(DATASET, tmp_path)[0].intrinsics[0, 0] == 2.5
    del camera["width"]
    path.write_text(json.dumps({**camera, "intrinsic_matrix": [5, 0, 0, 0, 6, 0, 5.5, 3.5, 1]}))
    assert "camera_primesense.json has its principal point at (5.5, 3.5)" in layouts.refused(
        DATASET, tmp_path
    )
    for invalid in ("[]", '{"intrinsic_matrix": [1, 2]}', '{"intrinsic_matrix": "a"}'):
        path.write_text(invalid)
        assert "no intrinsic_matrix of nine numbers" in layouts.refused(DATASET, tmp_path)


def test_other_recordings_need_a_camera(tmp_path: Path):
    layouts.image(tmp_path / "color/000000.jpg", 4, 6)
    layouts.counts(tmp_path / "depth/000000.png", 4, 6)
    assert "its camera is not known; put a camera_primesense.json" in layouts.refused(
        DATASET, tmp_path
    )
    stated = DATASET.with_options({"camera": "5,6,2.5,1.5"})
    assert layouts.records(stated, tmp_path)[0].intrinsics[0, 0] == 5


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
