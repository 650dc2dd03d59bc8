"""Real images and depth in a user's layout: published depth statistics, and batches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.files import DepthFormat, read_depth, read_image
from modality_forcing.data.folder import ImageFolder
from modality_forcing.data.pipeline import to_example, train_batches
from modality_forcing.data.records import check
from modality_forcing.data.resize import center_crop_resize, center_square
from modality_forcing.data.shared_memory import BufferedStacker
from modality_forcing.encoders.words import HashedWordTokenizer
from modality_forcing.errors import UserError


@dataclass(frozen=True)
class Sample:
    """An image with depth, the expected depth in meters, and the valid fraction of the map."""

    image: str
    depth: str
    scale: float | None
    valid: float
    least: float
    median: float
    most: float


SAMPLES = {
    "lidar": Sample(
        "metric3d_kitti_demo/rgb/0000000005.png",
        "metric3d_kitti_demo/depth/0000000005.png",
        *(1 / 256, 0.195, 5.33, 13.84, 84.9),
    ),
    "kinect": Sample(
        "metric3d_nyu_demo/rgb/rgb_00000.jpg",
        "metric3d_nyu_demo/depth/sync_depth_00000.png",
        *(0.001, 0.733, 1.39, 3.26, 6.63),
    ),
    "tum": Sample(
        "open3d_tum/TUM_color.png", "open3d_tum/TUM_depth.png", 1 / 5000, 0.808, 1.46, 2.41, 9.33
    ),
    "phone": Sample(
        "promptda_arkit/image.jpg", "promptda_arkit/arkit_depth.png", 0.001, 1.0, 1.57, 2.65, 3.51
    ),
    "synthetic": Sample(
        "tartanair_P000/image_left/000036_left.png",
        "tartanair_P000/depth_left/000036_left_depth.npy",
        *(None, 1.0, 0.36, 1.07, 30.27),
    ),
    "frame": Sample(
        "tsdf_fusion_rgbd/rgbd-frames/frame-000150.color.png",
        "tsdf_fusion_rgbd/rgbd-frames/frame-000150.depth.png",
        *(0.001, 0.880, 0.94, 1.80, 2.86),
    ),
}
each_sample = pytest.mark.parametrize("name", SAMPLES)


def write_folder(root: Path, real_data: Path, names: list[str], caption: str = "a street") -> Path:
    """Links samples into the layout of `Folder`, with hidden "._" files of macOS."""
    for part in ("images", "depth"):
        (root / part).mkdir()
        (root / part / "._junk.png").write_bytes(b"\x00\x05\x16\x07" * 1024)
    for name in names:
        sample = SAMPLES[name]
        (root / "images" / name).with_suffix(Path(sample.image).suffix).symlink_to(
            real_data / sample.image
        )
        (root / "depth" / name).with_suffix(Path(sample.depth).suffix).symlink_to(
            real_data / sample.depth
        )
    (root / "captions.txt").write_text("".join(f"{name}\t{caption} {name}\n" for name in names))
    return root


@each_sample
def test_depth_equals_the_published_values(real_data: Path, name: str):
    sample = SAMPLES[name]
    depth, valid = read_depth(real_data / sample.depth, DepthFormat(sample.scale))
    known = depth[valid]
    assert abs(valid.mean() - sample.valid) < 6e-4
    measured = [known.min(), np.median(known), known.max()]
    np.testing.assert_allclose(
        measured, [sample.least, sample.median, sample.most], rtol=1e-3, atol=6e-3
    )


@each_sample
@pytest.mark.parametrize("resolution", [32, 64])
def test_crop_of_a_record_keeps_its_depth(
    real_data: Path, tmp_path: Path, name: str, resolution: int
):
    sample = SAMPLES[name]
    source = ImageFolder(
        write_folder(tmp_path, real_data, [name]), resolution, sample.scale, "metric"
    )
    assert len(source) == 1
    record = check(source[0])
    assert (
        record.image.shape == (resolution, resolution, 3) and record.caption == f"a street {name}"
    )

    depth, valid = read_depth(real_data / sample.depth, DepthFormat(sample.scale))
    image = read_image(real_data / sample.image)
    window = center_square(image.shape[:2]).rescale(image.shape[:2], depth.shape)
    rows = slice(round(window.top), round(window.top + window.height))
    columns = slice(round(window.left), round(window.left + window.width))
    depth, valid = depth[rows, columns], valid[rows, columns]
    assert np.isin(record.depth[record.valid], depth[valid]).all()
    median, before = np.median(record.depth[record.valid]), np.median(depth[valid])
    if (
        valid.mean() < 0.5
    ):  # points: cells hold several pixels, so more cells than pixels have one, and the nearest
        assert record.valid.mean() > valid.mean()
        assert 0.8 * before < median <= before
    else:  # a surface: the valid fraction is unchanged
        np.testing.assert_allclose(median, before, rtol=0.03)
        assert abs(record.valid.mean() - valid.mean()) < 0.03

    mean = image[center_rows(image), center_columns(image)].mean(axis=(0, 1))
    # The same crop of the image.
    np.testing.assert_allclose(record.image.mean(axis=(0, 1)), mean, atol=1.5)


def center_rows(image: np.ndarray) -> slice:
    window = center_square(image.shape[:2])
    return slice(round(window.top), round(window.top + window.height))


def center_columns(image: np.ndarray) -> slice:
    window = center_square(image.shape[:2])
    return slice(round(window.left), round(window.left + window.width))


def test_sizes_mixed_in_one_folder_reach_a_batch(real_data: Path, tmp_path: Path):
    """Three sensors of three sizes give one batch, the same after a restart."""
    names = ["frame", "kinect", "phone"]
    source = ImageFolder(write_folder(tmp_path, real_data, names), 32, 0.001, "metric")
    records = [center_crop_resize(source[i], 32) for i in range(len(source))]
    batch = BufferedStacker()(
        [to_example(record, i, HashedWordTokenizer()) for i, record in enumerate(records)]
    )
    medians = [
        np.median(depth[valid]) for depth, valid in zip(batch["depth"], batch["valid"], strict=True)
    ]
    np.testing.assert_allclose(medians, [SAMPLES[name].median for name in names], rtol=0.2)

    def loader():
        return train_batches(
            source, HashedWordTokenizer(), batch=4, seed=0, resolution=32, sparsity={"uniform": 1.0}
        )

    running = loader()
    next(running)
    state, expected = json.loads(json.dumps(running.get_state())), next(running)
    running.close()
    resumed = loader()
    resumed.set_state(state)
    got = next(resumed)
    resumed.close()
    for key in ("image", "depth", "valid", "index"):
        np.testing.assert_array_equal(got[key], expected[key])
    assert 0 < expected["valid"].mean() < 0.12


def test_intrinsics_of_a_crop_project_to_the_same_rays(real_data: Path, tmp_path: Path):
    # Of 26 September 2011.
    focal_x, focal_y, center_x, center_y = 721.5377, 721.5377, 609.5593, 172.854
    root = write_folder(tmp_path, real_data, ["lidar"])
    values = {"fx": focal_x, "fy": focal_y, "cx": center_x, "cy": center_y}
    (root / "intrinsics.json").write_text(json.dumps(values))
    intrinsics = ImageFolder(root, 64, 1 / 256)[0].intrinsics
    assert read_image(real_data / SAMPLES["lidar"].image).shape == (375, 1242, 3)
    # The field of view of the crop: 375 of 1242 columns, all rows.
    np.testing.assert_allclose(64 / intrinsics[0, 0], 375 / focal_x, rtol=1e-6)
    np.testing.assert_allclose(64 / intrinsics[1, 1], 375 / focal_y, rtol=1e-6)
    np.testing.assert_allclose(
        (intrinsics[0, 2] + 0.5) / 64, (center_x + 0.5 - 433.5) / 375, rtol=1e-5
    )
    np.testing.assert_allclose((intrinsics[1, 2] + 0.5) / 64, (center_y + 0.5) / 375, rtol=1e-5)


def test_invalid_real_folders_are_reported(real_data: Path, tmp_path: Path):
    root = write_folder(tmp_path, real_data, ["tum"])
    (root / "depth/tum.png").unlink()
    (root / "depth/tum.png").symlink_to(real_data / SAMPLES["lidar"].depth)
    with pytest.raises(
        UserError, match=r"tum\.png: depth has another aspect \(1242 x 375, the upright image 640 x"
    ):
        ImageFolder(root, 32, 0.001)[0]
    (root / "depth/tum.png").unlink()
    (root / "depth/tum.png").symlink_to(real_data / SAMPLES["tum"].image)
    with pytest.raises(UserError, match=r"a color .* image, not 16-bit depth"):
        ImageFolder(root, 32, 0.001)[0]
    tartanair = real_data / "tartanair_P000"
    for junk in (
        tartanair / "image_left/._000036_left.png",
        tartanair / "depth_left/._000036_left_depth.npy",
    ):
        with pytest.raises(UserError, match="cannot be read"):
            read_image(junk) if junk.suffix == ".png" else read_depth(junk, DepthFormat())
    assert [ImageFolder(tartanair / "image_left", 32)[i].id for i in range(2)] == [
        "000036_left",
        "000180_left",
    ]
