"""TUM RGB-D from its exact encoding: 1/5000 meters, images and depth matched by time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.datasets.tum import DATASET
from tests import layouts


def sequence(
    folder: Path, image_times: list[str], depths: list[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Writes a sequence; returns image and counts by the time of the image and of the depth."""
    for name, times in (("rgb", image_times), ("depth", depths)):
        head = f"# {name} images\n# file: 'x.bag'\n# timestamp filename\n"
        layouts.text(
            folder / f"{name}.txt", head + "".join(f"{time} {name}/{time}.png\n" for time in times)
        )
    images = {time: layouts.image(folder / f"rgb/{time}.png", 4, 6) for time in image_times}
    return {
        "rgb": images,
        "depth": {time: layouts.counts(folder / f"depth/{time}.png", 4, 6) for time in depths},
    }  # pyright: ignore


def test_depth_is_matched_by_nearest_time(tmp_path: Path):
    written = sequence(
        tmp_path / "rgbd_dataset_freiburg1_xyz",
        ["1305031102.175304", "1305031102.211214", "1305031102.275326"],
        ["1305031102.160407", "1305031102.226738", "1305031102.262886", "1305031102.400000"],
    )
    records = layouts.records(DATASET, tmp_path)
    pairs = [("1305031102.175304", "1305031102.160407"), ("1305031102.211214", "1305031102.226738")]
    pairs += [("1305031102.275326", "1305031102.262886")]
    assert [record.id for record in records] == [
        f"rgbd_dataset_freiburg1_xyz/rgb/{time}" for time, _ in pairs
    ]
    for record, (image_time, depth) in zip(records, pairs, strict=True):
        np.testing.assert_array_equal(record.image, written["rgb"][image_time])
        np.testing.assert_array_equal(
            record.depth, (written["depth"][depth] / 5000).astype(np.float32)
        )
        np.testing.assert_array_equal(
            record.intrinsics, [[525, 0, 319.5], [0, 525, 239.5], [0, 0, 1]]
        )


def test_image_without_depth_near_in_time_is_skipped(tmp_path: Path):
    sequence(tmp_path, ["1.000000", "2.000000"], ["1.021000", "2.019000"])
    assert [record.id for record in layouts.records(DATASET, tmp_path)] == ["rgb/2.000000"]


def test_third_camera_has_its_own_calibration(tmp_path: Path):
    sequence(tmp_path / "rgbd_dataset_freiburg3_office", ["1.0"], ["1.0"])
    assert layouts.records(DATASET, tmp_path)[0].intrinsics[0, 0] == np.float32(535.4)


@pytest.mark.parametrize("line", ["now rgb/1.png", "1.0"])
def test_damaged_list_is_reported(tmp_path: Path, line: str):
    sequence(tmp_path, ["1.0"], ["1.0"])
    layouts.text(tmp_path / "rgb.txt", f"# x\n{line}\n")
    assert "rgb.txt: line 2 is not a time and a path" in layouts.refused(DATASET, tmp_path)


def test_missing_file_is_reported_by_name(tmp_path: Path):
    sequence(tmp_path, ["1.0"], ["1.0"])
    (tmp_path / "depth/1.0.png").unlink()
    assert "depth/1.0.png: no such file" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
