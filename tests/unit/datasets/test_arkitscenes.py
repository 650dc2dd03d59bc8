"""ARKitScenes: coarse depth at single pixels, confidence, images rotated upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.records import Notes
from modality_forcing.datasets.arkitscenes import DATASET
from tests import layouts

VIDEO = "40753679"
META = "video_id,visit_id,fold,sky_direction\n"


def video(
    folder: Path,
    seconds: str = "6790.105",
    kind: str = "vga_wide",
    size: tuple[int, int] = (12, 16),
) -> np.ndarray:
    """Writes a frame with 3 x 4 depth pixels, the last of low confidence; returns counts."""
    layouts.image(folder / f"{kind}/{VIDEO}_{seconds}.png", *size)
    counts = layouts.stored(
        folder / f"lowres_depth/{VIDEO}_{seconds}.png",
        np.arange(12, dtype=np.uint16).reshape(3, 4) * 100,
    )
    confidence = np.full((3, 4), 2, np.uint8)
    confidence[2, 3], confidence[2, 2] = 1, 0
    layouts.stored(folder / f"confidence/{VIDEO}_{seconds}.png", confidence)
    layouts.text(
        folder / f"{kind}_intrinsics/{VIDEO}_{seconds}.pincam",
        f"{size[1]} {size[0]} 14.0 15.0 7.0 5.0\n",
    )
    return counts


def meta(root: Path, *rows: str) -> None:
    layouts.text(root / "metadata.csv", META + "".join(f"{row}\n" for row in rows))


def test_coarse_depth_is_scattered_to_single_pixels(tmp_path: Path):
    counts = video(tmp_path / "raw/Training" / VIDEO)
    meta(tmp_path / "raw", f"{VIDEO},1,Training,Up")
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == f"raw/Training/{VIDEO}/vga_wide/{VIDEO}_6790.105"
    # Without 0 and the two of low confidence.
    assert record.image.shape == (12, 16, 3) and record.valid.sum() == 9
    np.testing.assert_array_equal(
        record.depth[2::4, 2::4][record.valid[2::4, 2::4]], counts.ravel()[1:10] / np.float32(1000)
    )
    np.testing.assert_array_equal(record.intrinsics, [[14, 0, 7], [0, 15, 5], [0, 0, 1]])
    assert layouts.records(DATASET, tmp_path / "raw")[0].id.startswith("Training/")


def test_lowres_wide_images_have_the_resolution_of_depth(tmp_path: Path):
    counts = video(tmp_path / "Training" / VIDEO, kind="lowres_wide", size=(3, 4))
    meta(tmp_path, f"{VIDEO},1,Training,Up")
    (record,) = layouts.records(DATASET, tmp_path)
    expected = counts / np.float32(1000)
    expected[2, 2:] = 0
    np.testing.assert_array_equal(record.depth, expected)


@pytest.mark.parametrize(("sky", "quarters"), [("Up", 0), ("Left", 3), ("Right", 1), ("Down", 2)])
def test_images_are_rotated_upright(tmp_path: Path, sky: str, quarters: int):
    folder = tmp_path / "Training" / VIDEO
    video(folder)
    image = np.zeros((12, 16, 3), np.uint8)
    edge = {"Up": np.s_[:2], "Left": np.s_[:, :2], "Right": np.s_[:, -2:], "Down": np.s_[-2:]}[sky]
    image[edge] = 255
    layouts.stored(folder / f"vga_wide/{VIDEO}_6790.105.png", image)
    meta(tmp_path, f"{VIDEO},1,Training,{sky}")
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.image[:2].min() == 255 and record.image[3:].max() == 0
    coarse = np.arange(12).reshape(3, 4) * np.float32(0.1)
    coarse[2, 2:] = 0
    np.testing.assert_allclose(
        record.depth[record.depth > 0], np.rot90(coarse, quarters)[np.rot90(coarse, quarters) > 0]
    )
    sideways = quarters % 2
    assert record.image.shape[:2] == ((16, 12) if sideways else (12, 16))
    assert record.intrinsics[0, 0] == (15 if sideways else 14)
    center = {"Up": (7, 5), "Right": (5, 15 - 7), "Down": (15 - 7, 11 - 5), "Left": (11 - 5, 7)}[
        sky
    ]
    assert (record.intrinsics[0, 2], record.intrinsics[1, 2]) == center


def test_depth_and_camera_are_matched_by_time(tmp_path: Path):
    folder = tmp_path / "Training" / VIDEO
    video(folder)
    meta(tmp_path, f"{VIDEO},1,Training,Up")
    camera = folder / f"vga_wide_intrinsics/{VIDEO}_6790.105.pincam"
    camera.rename(camera.with_name(f"{VIDEO}_6790.104.pincam"))
    depth = folder / f"lowres_depth/{VIDEO}_6790.105.png"
    for name in ("lowres_depth", "confidence"):
        (folder / f"{name}/{VIDEO}_6790.105.png").rename(folder / f"{name}/{VIDEO}_6790.106.png")
    layouts.image(folder / f"vga_wide/{VIDEO}_6790.138.png", 12, 16)  # without depth
    layouts.junk(folder / f"vga_wide/._{VIDEO}_6790.105.png")
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id.endswith("6790.105") and record.intrinsics[0, 0] == 14
    (depth.with_name(f"{VIDEO}_6790.106.png")).rename(depth.with_name(f"{VIDEO}_6790.116.png"))
    assert "holds no frame of ARKitScenes" in layouts.refused(DATASET, tmp_path)


def test_frame_without_a_camera_is_reported(tmp_path: Path):
    video(tmp_path / "Training" / VIDEO)
    meta(tmp_path, f"{VIDEO},1,Training,Left")
    path = tmp_path / "Training" / VIDEO / f"vga_wide_intrinsics/{VIDEO}_6790.105.pincam"
    path.unlink()
    assert np.isnan(layouts.records(DATASET, tmp_path)[0].intrinsics).all()
    for invalid, message in (
        ("16 12 14", "is not width, height"),
        ("inf 12 14 15 7 5", "is not width, height"),
        ("a b c d e f", "is not width"),
        ("0 0 1 1 0 0", "without pixels"),
    ):
        layouts.text(path, invalid)
        assert message in layouts.refused(DATASET, tmp_path)


def test_intrinsics_of_another_size_are_rescaled(tmp_path: Path):
    video(tmp_path / "Training" / VIDEO)
    meta(tmp_path, f"{VIDEO},1,Training,Up")
    layouts.text(
        tmp_path / "Training" / VIDEO / f"vga_wide_intrinsics/{VIDEO}_6790.105.pincam",
        "32 24 28 30 14.5 10.5",
    )
    np.testing.assert_array_equal(
        layouts.records(DATASET, tmp_path)[0].intrinsics, [[14, 0, 7], [0, 15, 5], [0, 0, 1]]
    )


def test_high_resolution_depth_is_read(tmp_path: Path):
    folder = tmp_path / "upsampling/Validation" / VIDEO
    video(folder, kind="wide")
    counts = layouts.counts(folder / f"highres_depth/{VIDEO}_6790.105.png", 12, 16)
    meta(tmp_path / "upsampling", f"{VIDEO},1,Validation,Up")
    (record,) = layouts.records(DATASET, tmp_path, "highres_val")
    np.testing.assert_array_equal(record.depth, (counts / 1000).astype(np.float32))


def test_folds_and_videos_without_a_direction(tmp_path: Path):
    for fold, name in (
        ("Training", VIDEO),
        ("Training", "41"),
        ("Validation", "42"),
        ("Training", "44"),
    ):
        video(tmp_path / fold / name)
    meta(
        tmp_path,
        f"{VIDEO},1,Training,Up",
        "41,1,Training,NA",
        "42,1,Validation,Up",
        "43,1,Training,Up",
        "44,1,Validation,Up",
    )
    assert [record.id.split("/")[1] for record in layouts.records(DATASET, tmp_path, "train")] == [
        VIDEO
    ]
    assert [record.id.split("/")[1] for record in layouts.records(DATASET, tmp_path, "val")] == [
        "42"
    ]
    source = DATASET.open(tmp_path, "train")
    assert isinstance(source, Notes)
    what = "1 of 2 videos have no sky_direction (Training/41)"
    assert source.notes() == [f"{tmp_path}: {what}"]
    assert "holds no frame" in layouts.refused(DATASET, tmp_path, "highres_train")
    (tmp_path / "metadata.csv").unlink()
    assert "metadata.csv: no such file" in layouts.refused(DATASET, tmp_path, "train")


def test_sizes_that_differ_are_reported(tmp_path: Path):
    folder = tmp_path / "Training" / VIDEO
    video(folder, size=(10, 16))
    meta(tmp_path, f"{VIDEO},1,Training,Up")
    assert "is 4 x 3 pixels, but its image" in layouts.refused(DATASET, tmp_path)
    layouts.stored(folder / f"confidence/{VIDEO}_6790.105.png", np.ones((2, 2), np.uint8))
    assert "is 4 x 3 pixels, but its image" in layouts.refused(DATASET, tmp_path)
    layouts.counts(folder / f"confidence/{VIDEO}_6790.105.png", 3, 4)
    assert "not a mask of 8 bits" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
