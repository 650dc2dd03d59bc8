"""Native layouts: each set is read back from fixtures in the exact encodings on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.datasets.common.frame_names import official_names
from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.native_layouts import NativeLayout, find_native_layout
from modality_forcing.evaluation.benchmarks.registry import BENCHMARKS, Frame
from tests import layouts

RNG = np.random.default_rng(7)
NYU = "test/kitchen_0004/rgb_0001"
DRIVE = "2011_09_26_drive_0002_sync"
KITTI = f"2011_09_26/{DRIVE}/image_02/data/0000000069"
ETH = "courtyard/DSC_0286"
SCANNET = "scene0406_02/000300"
DIODE = "indoors/scene_00021/scan_00189/00021_00189_indoors_200_010"


def write_image(path: Path, height: int, width: int) -> np.ndarray:
    """Writes an image of noise, except for .jpg and .JPG one color, and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = RNG.integers(0, 256, (height, width, 3), np.uint8)
    image = noise if path.suffix == ".png" else np.full_like(noise, 90)
    Image.fromarray(image).save(path)
    return image


def counts(path: Path, height: int, width: int) -> np.ndarray:
    """Writes 16-bit counts of depth, about a third of them 0, and returns them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = RNG.integers(1, 65536, (height, width), np.uint16) * (
        RNG.random((height, width)) < 0.7
    )
    Image.fromarray(values.astype(np.uint16)).save(path)
    return values


def read(name: str, root: Path, frame: str) -> Frame:
    found = find_native_layout(BENCHMARKS[name], root)
    assert found
    return found.read(frame)


def agrees(frame: Frame, image: np.ndarray, depth: np.ndarray, scored: np.ndarray) -> None:
    valid = scored & np.isfinite(depth) & (depth > 0)
    assert valid.any() and not valid.all()
    np.testing.assert_array_equal(frame.image, image)
    np.testing.assert_array_equal(frame.valid, valid)
    np.testing.assert_array_equal(frame.depth, np.where(valid, depth, 0).astype(np.float32))
    assert (
        frame.image.dtype == np.uint8
        and frame.depth.dtype == np.float32
        and frame.valid.dtype == np.bool_
    )


def test_nyuv2_is_in_millimeters_with_eigen_crop(tmp_path: Path):
    image = write_image(tmp_path / f"{NYU}.png", 480, 640)
    depth = counts(tmp_path / "test/kitchen_0004/depth_0001.png", 480, 640)
    counts(tmp_path / "test/kitchen_0004/filled_0001.png", 480, 640)
    crop = np.zeros((480, 640), bool)
    crop[45:471, 41:601] = True
    frame = read("nyuv2", tmp_path, NYU)
    agrees(frame, image, depth / 1000, crop)
    assert frame.intrinsics is not None and frame.intrinsics.dtype == np.float32
    pixels = frame.intrinsics * [[640], [480], [1]]
    np.testing.assert_allclose(
        pixels, [[518.8579, 0, 325.5825], [0, 519.4696, 253.7362], [0, 0, 1]], rtol=1e-6
    )


def test_nyuv2_of_another_size_is_refused(tmp_path: Path):
    write_image(tmp_path / f"{NYU}.png", 240, 320)
    counts(tmp_path / "test/kitchen_0004/depth_0001.png", 240, 320)
    with pytest.raises(UserError, match=r"depth_0001.png: .*240 x 320") as caught:
        read("nyuv2", tmp_path, NYU)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["", "train/", "val/"])
def test_kitti_is_in_256ths_of_meters_and_cropped_twice(tmp_path: Path, part: str):
    image = write_image(tmp_path / f"{KITTI}.png", 375, 1242)
    depth = counts(
        tmp_path / f"{part}{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png", 375, 1242
    )
    crop = np.zeros((352, 1216), bool)
    crop[117:321, 43:1172] = (
        True  # integer pixels of .3324324 to .91351351 and .0359477 to .96405229
    )
    frame = read("kitti", tmp_path, KITTI)
    agrees(frame, image[23:, 13:1229], depth[23:, 13:1229] / 256, crop)
    assert frame.intrinsics is None


def test_small_kitti_frame_is_refused(tmp_path: Path):
    write_image(tmp_path / f"{KITTI}.png", 300, 1242)
    counts(tmp_path / f"{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png", 300, 1242)
    with pytest.raises(UserError, match=r"0000000069.png: .*300 x 1242"):
        read("kitti", tmp_path, KITTI)


@pytest.mark.parametrize(("rgb", "below"), [("rgb/", "depth/courtyard_dslr_depth/"), ("", "")])
def test_eth3d_is_raw_floats_with_inf_invalid(tmp_path: Path, rgb: str, below: str):
    image = write_image(tmp_path / f"{rgb}courtyard/images/dslr_images/DSC_0286.JPG", 4, 6)
    path = tmp_path / f"{below}courtyard/ground_truth_depth/dslr_images/DSC_0286.JPG"
    path.parent.mkdir(parents=True)
    depth = (RNG.random((4, 6), np.float32) * 30 + 0.1).astype("<f4")
    depth[0, 1:3], depth[2, 5] = np.inf, 0
    path.write_bytes(depth.tobytes())
    frame = read("eth3d", tmp_path, ETH)
    agrees(frame, image, depth, np.ones((4, 6), bool))
    assert frame.valid.sum() == 21 and frame.intrinsics is None


def test_eth3d_of_another_length_is_refused(tmp_path: Path):
    write_image(tmp_path / "rgb/courtyard/images/dslr_images/DSC_0286.JPG", 4, 6)
    path = tmp_path / "courtyard/ground_truth_depth/dslr_images/DSC_0286.JPG"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(4 * 23))
    with pytest.raises(UserError, match="holds 92 bytes, not 96") as caught:
        read("eth3d", tmp_path, ETH)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("number", ["000300", "300"])
def test_scannet_is_in_millimeters(tmp_path: Path, number: str):
    image = write_image(tmp_path / f"scene0406_02/color/{number}.jpg", 48, 64)
    depth = counts(tmp_path / f"scene0406_02/depth/{number}.png", 48, 64)
    frame = read("scannet", tmp_path, SCANNET)
    agrees(frame, image, depth / 1000, np.ones((48, 64), bool))
    assert frame.intrinsics is None


def test_scannet_color_is_resized_to_depth(tmp_path: Path):
    write_image(tmp_path / "scene0406_02/color/000000.jpg", 968, 1296)
    depth = counts(tmp_path / "scene0406_02/depth/000000.png", 480, 640)
    camera = tmp_path / "scene0406_02/intrinsic/intrinsic_depth.txt"
    camera.parent.mkdir()
    camera.write_text("576.0 0 320.0 0\n0 576.0 252.0 0\n0 0 1 0\n0 0 0 1\n")
    frame = read("scannet", tmp_path, "scene0406_02/000000")
    agrees(frame, np.full((480, 640, 3), 90, np.uint8), depth / 1000, np.ones((480, 640), bool))
    np.testing.assert_allclose(
        frame.intrinsics, [[0.9, 0, 0.5], [0, 1.2, 0.525], [0, 0, 1]], rtol=1e-6
    )
    counts(tmp_path / "scene0406_02/depth/000000.png", 240, 320)  # a copy of half the size
    with pytest.raises(UserError, match=r"intrinsic_depth\.txt has its principal point"):
        read("scannet", tmp_path, "scene0406_02/000000")


def test_scannet_of_another_aspect_ratio_is_refused(tmp_path: Path):
    write_image(tmp_path / "scene0406_02/color/000300.jpg", 54, 96)
    counts(tmp_path / "scene0406_02/depth/000300.png", 48, 64)
    with pytest.raises(UserError, match=r"is 64 x 48 pixels, but its image 000300\.jpg 96 x 54"):
        read("scannet", tmp_path, SCANNET)


@pytest.mark.parametrize("part", ["", "val/"])
def test_diode_uses_its_mask(tmp_path: Path, part: str):
    image = write_image(tmp_path / f"{part}{DIODE}.png", 6, 8)
    # The range of the protocol is not applied here.
    depth = (RNG.random((6, 8, 1)) * 400).astype(np.float32)
    mask = (RNG.random((6, 8)) < 0.6).astype(np.float32)
    mask[0, :3], depth[0, :3, 0] = 1, (0, np.nan, np.inf)
    np.save(tmp_path / f"{part}{DIODE}_depth.npy", depth)
    np.save(tmp_path / f"{part}{DIODE}_depth_mask.npy", mask)
    frame = read("diode", tmp_path, DIODE)
    agrees(frame, image, depth[..., 0], mask > 0)
    camera = [[886.81 / 1024, 0, 0.5], [0, 927.06 / 768, 0.5], [0, 0, 1]]
    np.testing.assert_allclose(frame.intrinsics, camera, rtol=1e-6)


def write_diode(root: Path, depth: tuple[int, int], mask: tuple[int, int]) -> None:
    write_image(root / f"{DIODE}.png", 6, 8)
    np.save(root / f"{DIODE}_depth.npy", np.ones((*depth, 1), np.float32))
    np.save(root / f"{DIODE}_depth_mask.npy", np.ones(mask, np.float32))


def test_crop_of_diode_has_no_known_camera(tmp_path: Path):
    write_diode(tmp_path, (6, 8), (6, 8))
    write_image(tmp_path / f"{DIODE}.png", 6, 6)
    for kind in ("depth", "depth_mask"):
        np.save(tmp_path / f"{DIODE}_{kind}.npy", np.ones((6, 6), np.float32))
    with pytest.raises(UserError, match="is 6 x 6 pixels, not 1024 x 768 or a rescaled copy"):
        read("diode", tmp_path, DIODE)


def write_nyuv2(root: Path) -> None:
    write_image(root / f"{NYU}.png", 480, 640)
    counts(root / "test/kitchen_0004/depth_0001.png", 480, 639)


def write_kitti(root: Path) -> None:
    write_image(root / f"{KITTI}.png", 375, 1242)
    counts(root / f"{DRIVE}/proj_depth/groundtruth/image_02/0000000069.png", 376, 1242)


@pytest.mark.parametrize(
    ("name", "frame", "write"),
    [
        ("nyuv2", NYU, write_nyuv2),
        ("kitti", KITTI, write_kitti),
        ("diode", DIODE, lambda root: write_diode(root, (6, 7), (6, 8))),
        ("diode", DIODE, lambda root: write_diode(root, (6, 8), (7, 8))),
    ],
)
def test_different_sizes_are_refused(
    tmp_path: Path, name: str, frame: str, write: Callable[[Path], None]
):
    write(tmp_path)
    with pytest.raises(UserError, match=r"pixels, but its image") as caught:
        read(name, tmp_path, frame)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nyuv2", "kitti", "eth3d", "scannet", "diode"])
def test_official_names_have_distinct_files(tmp_path: Path, name: str):
    layout = NativeLayout(BENCHMARKS[name], tmp_path)
    names = official_names(name)
    files = [path for frame in names for path in layout.files(frame).values()]
    assert len(set(files)) == len(files) == len(names) * (3 if name == "diode" else 2)
    assert layout.names() == names and layout.num_expected == len(names)


@pytest.mark.parametrize(
    "wrong",
    ["rgb_0001", "test/kitchen_0004/depth_0001", "test/../x/rgb_0001", "test/a/rgb_0001.png"],
)
def test_malformed_name_is_refused_with_an_example(tmp_path: Path, wrong: str):
    with pytest.raises(UserError, match="write names like test/kitchen_0004/rgb_0001"):
        NativeLayout(BENCHMARKS["nyuv2"], tmp_path).files(wrong)


def test_files_with_an_orientation_are_refused_but_photographs_are_read_as_stored(tmp_path: Path):
    write_nyuv2(tmp_path)
    layouts.tag(tmp_path / f"{NYU}.png", 3, turned=False)
    with pytest.raises(UserError, match=r"rgb_0001\.png: its EXIF orientation is 3"):
        read("nyuv2", tmp_path, NYU)
    photograph = tmp_path / "courtyard/images/dslr_images/DSC_0286.JPG"
    image = write_image(photograph, 4, 6)
    layouts.tag(photograph, 6, turned=False)
    depth = tmp_path / "courtyard/ground_truth_depth/dslr_images/DSC_0286.JPG"
    depth.parent.mkdir(parents=True)
    depth.write_bytes(np.ones((4, 6), "<f4").tobytes())
    assert read("eth3d", tmp_path, ETH).image.shape == image.shape


def test_bundle_only_sets_have_no_native_layout(tmp_path: Path):
    assert find_native_layout(BENCHMARKS["ibims1"], tmp_path) is None
