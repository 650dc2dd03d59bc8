"""TUM RGB-D from its exact encoding: 1/5000 meters, images and depth matched by time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.resize import scale_intrinsics
from modality_forcing.datasets.tum import DATASET
from modality_forcing.errors import UserError
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
        np.testing.assert_allclose(record.intrinsics, scaled(525, 525, 319.5, 239.5), rtol=1e-6)


def scaled(*camera: float) -> np.ndarray:
    """The intrinsics of images of 640 x 480 pixels for those that `sequence` writes."""
    return scale_intrinsics(pinhole(*camera), (480, 640), (4, 6))


def test_image_without_depth_near_in_time_is_skipped(tmp_path: Path):
    sequence(tmp_path / "freiburg1", ["1.000000", "2.000000"], ["1.021000", "2.019000"])
    ids = [record.id for record in layouts.records(DATASET, tmp_path)]
    assert ids == ["freiburg1/rgb/2.000000"]


@pytest.mark.parametrize(
    ("name", "time", "focal"),
    [
        ("rgbd_dataset_freiburg3_office", "1.0", 535.4),
        ("renamed", "1341847980.722988", 535.4),
        ("renamed", "1311868164.363181", 525),
        ("renamed", "1305031102.175304", 525),
        # A name is worth less than what the camera wrote.
        ("rgbd_dataset_freiburg1_office", "1341847980.722988", 535.4),
    ],
)
def test_camera_does_not_depend_on_how_the_root_is_spelled(
    tmp_path: Path, monkeypatch, name: str, time: str, focal: float
):
    folder = tmp_path / name
    sequence(folder, [time], [time])
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for root in (folder, Path(), Path(".."), Path("../link")):
        record = layouts.records(DATASET, root)[0]
        camera = (535.4, 539.2, 320.1, 247.6) if focal == 535.4 else (525, 525, 319.5, 239.5)
        np.testing.assert_allclose(record.intrinsics, scaled(*camera), rtol=1e-6)


def test_other_recordings_need_a_camera(tmp_path: Path):
    sequence(tmp_path / "rgbd_bonn_crowd", ["1548266469.88"], ["1548266469.88"])
    assert "its camera is not known; name its folder after freiburg1" in layouts.refused(
        DATASET, tmp_path
    )
    stated = DATASET.with_options({"camera": "5.4,5.5,2.5,1.5"})
    expected = [[np.float32(5.4), 0, 2.5], [0, 5.5, 1.5], [0, 0, 1]]
    np.testing.assert_array_equal(layouts.records(stated, tmp_path)[0].intrinsics, expected)
    whole = DATASET.with_options({"camera": "542.8,542.6,315.6,237.8"})
    assert "6 x 4 pixels, but the camera option has its principal point" in layouts.refused(
        whole, tmp_path
    )
    with pytest.raises(UserError, match="TUM RGB-D has no option 'fx'; known are camera"):
        DATASET.with_options({"fx": "1"})


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
