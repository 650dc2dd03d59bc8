"""ETH3D: raw floats named .JPG, undistorted and reduced to a quarter."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modality_forcing.datasets import eth3d
from modality_forcing.datasets.common.cameras import Camera, pixel_grid
from modality_forcing.datasets.eth3d import DATASET, scale_camera
from tests import layouts

# Numbers similar to those of a scene, for 60 x 40 pixels instead of 6048 x 4032.
PARAMETERS = "34.1 34.1 30.4 20.1 0.21 0.22 -0.0002 -0.0004 0.12 -0.3 0.0001 0.0007"
BENT = Camera(
    "thin_prism_fisheye",
    (40, 60),
    34.1,
    34.1,
    29.9,
    19.6,
    (0.21, 0.22, -0.0002, -0.0004, 0.12, -0.3, 0.0001, 0.0007),
)


def scene(folder: Path, depth: np.ndarray, image: np.ndarray) -> None:
    layouts.stored(folder / "images/dslr_images/DSC_0001.JPG", image)
    path = folder / "ground_truth_depth/dslr_images/DSC_0001.JPG"
    path.parent.mkdir(parents=True)
    path.write_bytes(depth.astype("<f4").tobytes())
    layouts.text(
        folder / "dslr_calibration_jpg/cameras.txt",
        f"# c\n0 THIN_PRISM_FISHEYE 60 40 {PARAMETERS}\n",
    )
    layouts.text(
        folder / "dslr_calibration_jpg/images.txt",
        "1 1 0 0 0 0 0 0 0 dslr_images/DSC_0001.JPG\n1.0 2.0 -1\n",
    )


def wall() -> np.ndarray:
    """Depth along the axis of a slanted wall, z = 4 + 0.3 x, seen by the distorted camera."""
    directions = BENT.unproject(pixel_grid((40, 60)).reshape(-1, 2)).reshape(40, 60, 2)
    return 4 / (1 - 0.3 * directions[..., 0])


def test_undistorted_wall_is_flat(tmp_path: Path):
    depth = wall().astype(np.float32)
    depth[5, 7] = np.inf
    scene(tmp_path / "courtyard", depth, np.full((40, 60, 3), 90, np.uint8))
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.id == "courtyard/images/dslr_images/DSC_0001"
    assert record.depth.shape == (40, 60) and record.valid.mean() > 0.99
    rows, columns = np.nonzero(record.valid)
    x = (columns - record.intrinsics[0, 2]) / record.intrinsics[0, 0]
    expected = 4 / (1 - 0.3 * x)
    # Depth is picked at the nearest pixel, and half a pixel is 2% of the focal length on an axis.
    assert np.abs(record.depth[rows, columns] / expected - 1).max() < 0.012
    assert np.abs(np.median(record.depth[rows, columns] / expected - 1)) < 0.003
    assert np.abs(record.image.astype(int) - 90).max() < 4  # no pixel is beyond the image


def test_image_and_depth_are_aligned(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(eth3d, "MIN_SHORT_SIDE", 20)  # 40 rows are brought to half
    depth = np.full((40, 60), 10, np.float32)
    image = np.zeros((40, 60, 3), np.uint8)
    depth[26:32, 44:50], image[26:32, 44:50] = 5, 255
    scene(tmp_path / "courtyard", depth, image)
    (record,) = layouts.records(DATASET, tmp_path)
    assert record.depth.shape == (20, 30)
    near = record.depth == 5
    assert 4 <= near.sum() <= 16
    bright = record.image[..., 0] > 128
    middle = [np.argwhere(mask).mean(axis=0) for mask in (near, bright)]
    np.testing.assert_allclose(middle[0], middle[1], atol=0.6)
    direction = BENT.unproject(np.array([[46.5, 28.5]]))[0]
    at = record.intrinsics @ [*direction, 1]
    np.testing.assert_allclose(middle[0][::-1], at[:2], atol=0.7)


def test_downscaled_camera_has_the_same_view():
    small = scale_camera(BENT, (20, 30))
    directions = np.array([[0.3, -0.2, 1.0], [-0.5, 0.4, 1.0]])
    (pixels, _), (fewer, _) = BENT.project(directions), small.project(directions)
    np.testing.assert_allclose((fewer + 0.5) * 2, pixels + 0.5, rtol=1e-12)


def test_inconsistent_files_are_reported(tmp_path: Path):
    scene(tmp_path / "courtyard", np.ones((40, 60)), np.zeros((40, 60, 3), np.uint8))
    cameras = tmp_path / "courtyard/dslr_calibration_jpg/cameras.txt"
    layouts.text(cameras, f"0 THIN_PRISM_FISHEYE 50 40 {PARAMETERS}\n")
    assert "DSC_0001.JPG: is 60 x 40 pixels, but its camera 50 x 40" in layouts.refused(
        DATASET, tmp_path
    )
    (tmp_path / "courtyard/ground_truth_depth/dslr_images/DSC_0001.JPG").write_bytes(b"abc")
    assert "DSC_0001.JPG: holds 3 bytes, not 9600" in layouts.refused(DATASET, tmp_path)
    cameras.unlink()
    assert "cameras.txt: no such file" in layouts.refused(DATASET, tmp_path)


def test_missing_and_empty_folders_are_refused(tmp_path: Path):
    layouts.refuses_other_folders(DATASET, tmp_path)
