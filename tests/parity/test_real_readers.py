"""Readers on real samples: expected depth statistics, and frames warped into each other."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.intrinsics import pinhole
from modality_forcing.data.records import Record, check
from modality_forcing.datasets import (
    arkitscenes,
    colmap,
    hypersim,
    middlebury,
    nyuv2,
    redwood,
    seven_scenes,
    sunrgbd,
    tartanair,
    tum,
)
from modality_forcing.datasets.common import formats
from modality_forcing.datasets.common.colmap import read_model
from tests import layouts


def is_depth(record: Record, valid: float, least: float, median: float, most: float) -> None:
    """Checks a record against published statistics to 0.01 m and 0.001 of the pixels."""
    known = check(record).depth[record.valid]
    assert record.unit == "metric"
    assert abs(record.valid.mean() - valid) < 6e-4
    np.testing.assert_allclose(
        [known.min(), np.median(known), known.max()], [least, median, most], rtol=1e-3, atol=6e-3
    )


def warp(
    first: Record, second: Record, first_pose: np.ndarray, second_pose: np.ndarray
) -> tuple[float, float, float, float]:
    """Warps the first frame into the second's view; poses are camera to world.

    Returns the part of its known pixels on known ones, the median depth difference, and the mean
    difference in color there and of the two images as they are.
    """
    rows, columns = np.nonzero(first.valid)
    rays = np.linalg.inv(first.intrinsics.astype(np.float64)) @ np.stack(
        [columns, rows, np.ones_like(rows)]
    )
    points = np.concatenate([rays * first.depth[rows, columns], np.ones((1, len(rows)))])
    x, y, z = (np.linalg.inv(second_pose) @ first_pose @ points)[:3]
    u, v, _ = second.intrinsics.astype(np.float64) @ np.stack([x / z, y / z, np.ones_like(z)])
    u, v = np.rint(u).astype(int), np.rint(v).astype(int)
    height, width = second.depth.shape
    inside = (z > 0) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    inside[inside] &= second.valid[v[inside], u[inside]]
    to, away = (v[inside], u[inside]), (rows[inside], columns[inside])
    seen, there = first.image[away].astype(float), second.image.astype(float)
    gap = np.abs(second.depth[to] - z[inside])
    close = gap < 0.1
    error = np.abs(seen - there[to])[close].mean()
    before = np.abs(first.image.astype(float) - there)[first.valid].mean()
    return float(inside.mean()), float(np.median(gap)), float(error), float(before)


def test_tum(real_data: Path, tmp_path: Path):
    layouts.link(
        tmp_path / "room/rgb/1305031102.175304.png", real_data / "open3d_tum/TUM_color.png"
    )
    layouts.link(
        tmp_path / "room/depth/1305031102.160407.png", real_data / "open3d_tum/TUM_depth.png"
    )
    layouts.text(
        tmp_path / "room/rgb.txt", "# color images\n1305031102.175304 rgb/1305031102.175304.png\n"
    )
    layouts.text(
        tmp_path / "room/depth.txt", "# depth maps\n1305031102.160407 depth/1305031102.160407.png\n"
    )
    source = tum.DATASET.open(tmp_path, "train")
    assert len(source) == 1
    is_depth(source[0], 0.808, 1.46, 2.41, 9.33)


def test_frames_of_a_kinect_agree(real_data: Path):
    root = real_data / "tsdf_fusion_rgbd"
    source = seven_scenes.DATASET.open(root, "every")
    records = {record.id: record for record in (source[i] for i in range(len(source)))}
    names = [f"rgbd-frames/frame-{number:06}" for number in (150, 151, 199)]
    assert list(records) == names
    first, second, third = (records[name] for name in names)
    is_depth(first, 0.880, 0.94, 1.80, 2.86)
    is_depth(second, 0.882, 0.94, 1.82, 2.88)
    is_depth(third, 0.905, 1.06, 2.30, 2.90)
    np.testing.assert_array_equal(first.intrinsics, pinhole(585, 585, 320, 240))
    poses = [formats.read_pose(root / f"{name}.pose.txt") for name in names]
    _, gap, color, before = warp(first, second, poses[0], poses[1])
    assert gap < 0.006 and color < 5 and before > 10
    overlap, gap, *_ = warp(first, third, poses[0], poses[2])
    assert 0.35 < overlap < 0.45 and gap < 0.025


def test_frames_of_a_rendered_room_agree(real_data: Path):
    root = real_data / "open3d_redwood_livingroom"
    source = redwood.DATASET.open(root, "train")
    records = [source[i] for i in range(len(source))]
    assert [record.id for record in records] == [f"RGBD/color/{number:05}" for number in range(5)]
    is_depth(records[0], records[0].valid.mean(), 0.96, 1.86, 2.70)
    assert all(0.87 <= round(check(record).valid.mean(), 3) <= 0.876 for record in records)
    np.testing.assert_array_equal(records[0].intrinsics, pinhole(525, 525, 319.5, 239.5))
    lines = (root / "RGBD/trajectory.log").read_text().splitlines()
    poses = [
        np.array([row.split() for row in lines[5 * i + 1 : 5 * i + 5]], float) for i in range(5)
    ]
    overlap, gap, color, before = warp(records[0], records[4], poses[0], poses[4])
    assert overlap > 0.8 and gap < 0.006 and color < 6 and before > 15


def test_nyuv2_and_its_border(real_data: Path):
    root = real_data / "metric3d_nyu_demo"
    record = nyuv2.DATASET.open(root, "train")[0]
    assert record.id == "rgb/rgb_00000" and record.image.shape == (464, 624, 3)
    inside = 464 * 624 / (480 * 640)
    is_depth(record, 0.733 / inside, 1.39, 3.26, 6.63)  # the border holds no valid pixel
    assert (
        record.valid.sum()
        == (formats.read_uint16_depth(root / "depth/sync_depth_00000.png", 1000) > 0).sum()
    )
    assert record.image[0].mean() < 240 and record.image[:, -1].mean() < 240
    np.testing.assert_allclose(
        record.intrinsics, pinhole(518.8579, 519.46961, 325.58245 - 8, 253.73617 - 8), rtol=1e-6
    )


def test_sunrgbd(real_data: Path, tmp_path: Path):
    scene = tmp_path / "xtion/sun3ddata/room"
    layouts.link(scene / "image/a.jpg", real_data / "open3d_sunrgbd/SUN_color.jpg")
    layouts.link(scene / "depth/b.png", real_data / "open3d_sunrgbd/SUN_depth.png")
    layouts.text(scene / "intrinsics.txt", "570.3 0 320 0 570.3 240 0 0 1")
    is_depth(sunrgbd.DATASET.open(tmp_path, "without_nyu")[0], 0.818, 1.06, 2.72, 9.87)


def test_hypersim_from_ray_to_depth(real_data: Path, tmp_path: Path):
    pytest.importorskip("h5py")
    here = real_data / "hypersim_depth_only"
    depth = "ai_037_002/images/scene_cam_00_geometry_hdf5/frame.0000.depth_meters.hdf5"
    layouts.link(tmp_path / depth, here / "jupyter" / depth)
    layouts.link(
        tmp_path / "metadata_camera_parameters.csv", here / "metadata_camera_parameters.csv"
    )
    head = (
        "scene_name,camera_name,frame_id,included_in_public_release,"
        "exclude_reason,split_partition_name\n"
    )
    layouts.text(
        tmp_path / "metadata_images_split_scene_v1.csv", head + "ai_037_002,cam_00,0,True,,train\n"
    )
    light = np.full((768, 1024, 3), 0.5, np.float16)
    layouts.hdf5(
        tmp_path / "ai_037_002/images/scene_cam_00_final_hdf5/frame.0000.color.hdf5",
        "dataset",
        light,
    )
    entity = np.zeros((768, 1024), np.int32)
    layouts.hdf5(tmp_path / depth.replace("depth_meters", "render_entity_id"), "dataset", entity)

    distance = formats.read_hdf5(tmp_path / depth, "dataset")
    assert distance.dtype == np.float16 and distance.shape == (768, 1024)
    measured = distance.astype(np.float32)
    np.testing.assert_allclose(
        [measured.min(), np.median(measured), measured.max()], [2.96, 5.50, 13.23], atol=6e-3
    )
    record = check(hypersim.DATASET.open(tmp_path, "train")[0])
    assert record.valid.all()
    # A camera without lens shift would have it 2.66, 5.19, 12.97.
    known = record.depth
    np.testing.assert_allclose(
        [known.min(), np.median(known), known.max()], [2.795, 5.17, 12.74], rtol=1e-3
    )
    assert 572 < record.intrinsics[0, 2] < 574 and 456 < record.intrinsics[1, 2] < 458
    rows, columns = np.mgrid[:768, :1024]
    rays = np.linalg.inv(record.intrinsics.astype(np.float64)) @ np.stack(
        [columns, rows, np.ones((768, 1024))]
    ).reshape(3, -1)
    lengths = np.linalg.norm(rays, axis=0).reshape(768, 1024)
    np.testing.assert_allclose(record.depth * lengths, measured, rtol=1e-5)


def test_tartanair_ignores_other_files(real_data: Path):
    root = real_data / "tartanair_P000"
    source = tartanair.DATASET.open(root, "train")
    first, second = (check(source[i]) for i in range(len(source)))
    assert [first.id, second.id] == ["image_left/000036_left", "image_left/000180_left"]
    is_depth(first, 1.0, 0.36, 1.07, 30.27)
    stored = formats.read_array(root / "depth_left/000180_left_depth.npy")
    np.testing.assert_allclose(
        [stored.min(), np.median(stored), stored.max()], [0.48, 1.01, 2572], atol=0.6
    )
    np.testing.assert_array_equal(second.valid, stored < 1000)
    assert 0 < (~second.valid).sum() <= 9 and second.depth.max() < 1000
    np.testing.assert_array_equal(first.intrinsics, pinhole(320, 320, 319.5, 239.5))


def test_middlebury_agrees_with_its_right_image(real_data: Path, tmp_path: Path):
    here = real_data / "skimage_middlebury2014_motorcycle"
    disparity = formats.read_npz(here / "motorcycle_disp.npz", "arr_0")
    assert (
        abs(np.isfinite(disparity).mean() - 0.927) < 6e-4
        and np.isposinf(disparity[~np.isfinite(disparity)]).all()
    )
    scene = tmp_path / "Motorcycle-perfect"
    layouts.link(scene / "im0.png", here / "motorcycle_left.png")
    layouts.pfm(scene / "disp0.pfm", disparity)
    camera = (
        "cam0=[994.978 0 311.193; 0 994.978 254.877; 0 0 1]\n"
        "cam1=[994.978 0 342.279; 0 994.978 254.877; 0 0 1]\n"
    )
    layouts.text(
        scene / "calib.txt", camera + "doffs=31.086\nbaseline=193.001\nwidth=741\nheight=500\n"
    )
    record = middlebury.DATASET.open(tmp_path, "train")[0]
    is_depth(record, 0.927, 2.11, 2.75, 5.02)
    right = np.array(Image.open(here / "motorcycle_right.png").convert("RGB")).astype(float)
    rows, columns = np.nonzero(record.valid)
    shift = 994.978 * 0.193001 / record.depth[rows, columns] - 31.086
    at = np.rint(columns - shift).astype(int)
    inside = at >= 0
    left = record.image[rows, columns].astype(float)
    assert np.median(np.abs(left[inside] - right[rows[inside], at[inside]])) <= 3
    assert np.median(np.abs(left - right[rows, columns])) >= 20


def test_arkit_depth_at_image_resolution(real_data: Path, tmp_path: Path):
    video = tmp_path / "raw/Training/40753679"
    image = np.array(Image.open(real_data / "promptda_arkit/image.jpg").convert("RGB"))
    small = np.array(Image.fromarray(image).resize((640, 480)))
    layouts.stored(video / "vga_wide/40753679_6790.105.png", small)
    layouts.link(
        video / "lowres_depth/40753679_6790.105.png", real_data / "promptda_arkit/arkit_depth.png"
    )
    layouts.stored(video / "confidence/40753679_6790.105.png", np.full((192, 256), 2, np.uint8))
    layouts.text(
        video / "vga_wide_intrinsics/40753679_6790.104.pincam",
        "640 480 533.069 533.069 320.087 238.754",
    )
    layouts.text(
        tmp_path / "raw/metadata.csv",
        "video_id,visit_id,fold,sky_direction\n40753679,1,Training,Up\n",
    )
    source = arkitscenes.DATASET.open(tmp_path, "train")
    assert len(source) == 1
    record = source[0]
    assert record.image.shape == (480, 640, 3) and record.valid.sum() == 192 * 256
    is_depth(record, 192 * 256 / (480 * 640), 1.57, 2.65, 3.51)


def test_colmap_with_most_images_missing(real_data: Path):
    root = real_data / "gtsfm_lund_door_colmap_txt"
    model = read_model(root / "colmap_ground_truth")
    assert len(model.images) == 12 and len(model.points) == 11384
    medians = [np.median(model.depths(image)[2]) for image in model.images]
    # Of the two whose images are here.
    np.testing.assert_allclose([medians[0], medians[-1]], 0.25, atol=0.005)
    assert min(medians) > 0.2 and max(medians) <= 0.25
    source = colmap.DATASET.open(root, "train")
    assert len(source) == 2
    for index, (name, valid, least, median, most) in enumerate(
        [("DSC_0001", 0.0018, 14.9, 20.8, 24.0), ("DSC_0012", 0.0021, 12.7, 19.6, 23.1)]
    ):
        record = check(source[index])
        assert (
            record.id == f"images/{name}"
            and record.image.shape == (1936, 1296, 3)
            and record.unit == "sfm"
        )
        assert (record.image.max(axis=2) == 0).mean() < 0.001  # filled to its edges
        known = record.depth[record.valid]
        np.testing.assert_allclose(record.valid.mean(), valid, atol=1e-4)
        np.testing.assert_allclose(
            [known.min(), np.median(known), known.max()], [least, median, most], atol=0.06
        )


def test_readers_refuse_other_data_sets(real_data: Path):
    from modality_forcing.errors import UserError
    from modality_forcing.paths import resolve

    for module in (tum, sunrgbd, middlebury):
        with pytest.raises(UserError, match=re.escape(str(resolve(real_data / "tartanair_P000")))):
            module.DATASET.open(real_data / "tartanair_P000", module.DATASET.splits[0])
