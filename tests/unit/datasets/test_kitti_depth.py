"""KITTI's depth benchmark: 256ths of a meter, the day's camera, and no drive of the test split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.records import check
from modality_forcing.datasets.kitti_depth import DATASET
from modality_forcing.errors import UserError

DRIVE = "2011_09_26_drive_0001_sync"
RNG = np.random.default_rng(3)


def write_image(path: Path, size: tuple[int, int] = (375, 1242)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((*size, 3), 70, np.uint8)
    Image.fromarray(image).save(path)
    return image


def counts(path: Path, size: tuple[int, int] = (375, 1242)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size, np.uint16)
    values[size[0] // 2 :] = (
        RNG.integers(1, 65536, (size[0] - size[0] // 2, size[1]))
        * (RNG.random(size) < 0.2)[size[0] // 2 :]
    )
    Image.fromarray(values).save(path)
    return values


def depth_path(
    split: str = "train", drive: str = DRIVE, camera: str = "02", number: int = 5
) -> str:
    return f"{split}/{drive}/proj_depth/groundtruth/image_{camera}/{number:010d}.png"


def raw(drive: str = DRIVE, camera: str = "02", number: int = 5) -> str:
    return f"{drive[:10]}/{drive}/image_{camera}/data/{number:010d}.png"


def calibrate(root: Path, focal: float, width: int = 1242) -> None:
    lines = ["calib_time: 09-Jan-2012 13:57:47"]
    for camera, shift in (("02", 44.9), ("03", -339.5)):
        lines.append(f"S_rect_{camera}: {width:e} 3.75e+02")
        lines.append(f"P_rect_{camera}: {focal} 0 609.5 {shift} 0 {focal} 172.8 0.2 0 0 1 0.003")
    (root / "calib_cam_to_cam.txt").write_text("\n".join(lines))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("camera", ["02", "03"])
@pytest.mark.parametrize("place", [".", "raw", "within"])
def test_depth_is_256ths_of_a_meter(tmp_path: Path, split: str, camera: str, place: str):
    values = counts(tmp_path / depth_path(split, camera=camera))
    within = f"{split}/{DRIVE}/image_{camera}/data/0000000005.png"
    image = write_image(
        tmp_path / (within if place == "within" else f"{place}/{raw(camera=camera)}")
    )
    source = DATASET.open(tmp_path, split)
    assert len(source) == 1
    record = check(source[0])
    np.testing.assert_array_equal(record.image, image)
    np.testing.assert_array_equal(record.valid, values > 0)
    np.testing.assert_array_equal(record.depth, (values / 256).astype(np.float32))
    np.testing.assert_allclose(
        record.intrinsics, [[721.5377, 0, 609.5593], [0, 721.5377, 172.854], [0, 0, 1]], rtol=1e-6
    )
    assert record.unit == "metric" and record.source == "kitti_depth"
    assert record.id.endswith(f"{DRIVE}/image_{camera}/data/0000000005")


def test_calibration_of_the_day_is_used_if_its_size_fits(tmp_path: Path):
    counts(tmp_path / depth_path())
    write_image(tmp_path / raw())
    calibrate(tmp_path / "2011_09_26", 700.5)
    np.testing.assert_allclose(
        DATASET.open(tmp_path, "train")[0].intrinsics,
        [[700.5, 0, 609.5], [0, 700.5, 172.8], [0, 0, 1]],
    )
    calibrate(tmp_path / "2011_09_26", 700.5, width=1224)
    with pytest.raises(
        UserError,
        match=r"calib_cam_to_cam\.txt: is of images of 1224 x 375 pixels, but .* has 1242 x 375",
    ):
        DATASET.open(tmp_path, "train")[0]


def test_flat_folder_gets_its_camera_from_the_image_size(tmp_path: Path):
    values = counts(tmp_path / "depth/b.png", (370, 1224))
    for name, size in {"a": (370, 1224), "b": (370, 1224), "c": (375, 1242)}.items():
        write_image(tmp_path / f"rgb/{name}.png", size)
    counts(tmp_path / "depth/c.png")
    counts(tmp_path / "depth/without_picture.png")
    (tmp_path / "depth/._a.png").write_bytes(b"\x00\x05\x16\x07")
    source = DATASET.open(tmp_path, "train")
    assert [source[i].id for i in range(len(source))] == ["rgb/b", "rgb/c"]
    np.testing.assert_array_equal(source[0].depth, (values / 256).astype(np.float32))
    np.testing.assert_allclose(
        [source[i].intrinsics[0, 0] for i in range(2)], [707.0493, 721.5377], rtol=1e-6
    )
    with pytest.raises(UserError, match="holds no frame of KITTI depth's val split"):
        DATASET.open(tmp_path, "val")


def test_unknown_image_size_has_no_camera(tmp_path: Path):
    counts(tmp_path / "depth/a.png", (352, 1216))  # the benchmark's selection is cropped
    write_image(tmp_path / "rgb/a.png", (352, 1216))
    with pytest.raises(UserError, match=r"rgb/a\.png: no day's images have 1216 x 352 pixels"):
        DATASET.open(tmp_path, "train")[0]


def test_test_drives_are_not_in_the_training_split(tmp_path: Path):
    for split in ("train", "val"):
        for drive in (DRIVE, "2011_09_26_drive_0002_sync"):
            counts(tmp_path / depth_path(split, drive), (60, 100))
            write_image(tmp_path / raw(drive), (60, 100))
    assert len(DATASET.open(tmp_path, "train")) == 1
    assert len(DATASET.open(tmp_path, "val")) == 2


def test_depth_without_its_image_is_skipped(tmp_path: Path):
    counts(tmp_path / depth_path())
    with pytest.raises(
        UserError, match=r"KITTI depth's train split: 1 of 1 files of depth have no image"
    ):
        DATASET.open(tmp_path, "train")
    write_image(tmp_path / raw(number=6))
    with pytest.raises(UserError, match="train split"):
        DATASET.open(tmp_path, "train")
    write_image(tmp_path / raw())
    assert len(DATASET.open(tmp_path, "train")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "cannot be read as a depth map"),
        (lambda path: write_image(path), "is a color .* image, not 16-bit depth"),
        (
            lambda path: Image.fromarray(np.ones((375, 1242), np.uint8)).save(path),
            "is an 8-bit image",
        ),
        (
            lambda path: Image.fromarray(np.zeros((375, 1242), np.uint16)).save(path),
            "its depth has no valid pixel",
        ),
        (
            lambda path: counts(path, (370, 1224)),
            "its image is 1242 x 375 pixels and its depth 1224 x 370",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, change, message: str):
    counts(tmp_path / depth_path())
    write_image(tmp_path / raw())
    change(tmp_path / depth_path())
    with pytest.raises(UserError, match=message) as caught:
        DATASET.open(tmp_path, "train")[0]
    assert "\n" not in str(caught.value) and "0000000005.png" in str(caught.value)
