"""A folder as a data set: uncropped frames, depth at image resolution, options."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.records import check
from modality_forcing.datasets.folder import DATASET
from modality_forcing.errors import UserError


def write_folder(root: Path, size: tuple[int, int], depth: np.ndarray | None) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "depth").mkdir()
    (root / "images/._a.png").write_bytes(b"junk")
    Image.fromarray(np.full((*size, 3), 70, np.uint8)).save(root / "images/a.png")
    if depth is not None:
        Image.fromarray(depth.astype(np.uint16)).save(root / "depth/a.png")
    (root / "captions.txt").write_text("a\ta wall\n")
    (root / "intrinsics.json").write_text(
        '{"fx": 20, "fy": 21, "cx": 7.5, "cy": 5.5, "width": 16, "height": 12}'
    )
    return root


MILLIMETERS = {"depth_scale": "0.001", "unit": "metric"}


def test_frames_are_not_cropped(tmp_path: Path):
    counts = np.arange(12 * 16).reshape(12, 16) * 10
    source = DATASET.with_options(MILLIMETERS).open(
        write_folder(tmp_path, (12, 16), counts), "train"
    )
    assert len(source) == 1
    record = check(pickle.loads(pickle.dumps(source))[0])  # noqa: S301
    assert record.image.shape == (12, 16, 3) and record.caption == "a wall" and record.id == "a"
    np.testing.assert_allclose(record.depth, counts / 1000, rtol=1e-6)
    np.testing.assert_array_equal(record.valid, counts > 0)
    np.testing.assert_array_equal(
        record.intrinsics, np.array([[20, 0, 7.5], [0, 21, 5.5], [0, 0, 1]], np.float32)
    )
    assert record.unit == "metric"


def test_coarser_depth_is_scattered_to_single_pixels(tmp_path: Path):
    counts = np.arange(1, 13).reshape(3, 4) * 1000
    record = check(
        DATASET.with_options(MILLIMETERS).open(write_folder(tmp_path, (12, 16), counts), "train")[0]
    )
    assert record.depth.shape == (12, 16) and record.valid.sum() == 12
    assert sorted(record.depth[record.valid].tolist()) == list(range(1, 13))
    np.testing.assert_array_equal(record.depth[2::4, 2::4], counts / 1000)


def test_finer_depth_is_subsampled(tmp_path: Path):
    counts = np.repeat(np.repeat(np.arange(1, 13).reshape(3, 4) * 1000, 4, 0), 4, 1)
    record = check(
        DATASET.with_options(MILLIMETERS).open(write_folder(tmp_path, (3, 4), counts), "train")[0]
    )
    np.testing.assert_array_equal(record.depth, np.arange(1, 13).reshape(3, 4))
    np.testing.assert_allclose(record.intrinsics, [[5, 0, 1.5], [0, 5.25, 1], [0, 0, 1]])


def test_image_without_depth_gives_a_text_to_image_record(tmp_path: Path):
    record = check(DATASET.open(write_folder(tmp_path, (12, 16), None), "train")[0])
    assert not record.valid.any() and record.depth.shape == (12, 16) and record.unit == "relative"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "1"}, "a folder of your own has no option 'scale'; known are depth_scale, "),
        ({"unit": "feet"}, "no unit is called 'feet'; choose one of metric, sfm, relative"),
        ({"depth_scale": "mm"}, "depth_scale is 'mm'"),
        ({"depth_scale": "-1"}, "depth_scale is -1; it must be a positive number"),
    ],
)
def test_invalid_options_are_reported(options: dict[str, str], message: str):
    with pytest.raises(UserError, match=message):
        DATASET.with_options(options)


def test_unknown_split_and_other_aspect_ratio_are_reported(tmp_path: Path):
    root = write_folder(tmp_path, (12, 16), np.ones((12, 12)))
    source = DATASET.with_options(MILLIMETERS).open(root, "train")
    with pytest.raises(UserError, match="depth has another aspect"):
        source[0]
    with pytest.raises(UserError, match="has no split 'val'; choose one of train"):
        DATASET.open(root, "val")
    with pytest.raises(UserError, match="no such folder"):
        DATASET.open(root / "none", "train")
