"""Real driving scans: their projected depth matches published measurements."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.data.records import Record, RecordSource, check
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.datasets import argoverse2, ddad, kitti_depth, kitti_raw
from modality_forcing.datasets.common.cameras import Camera
from modality_forcing.datasets.common.lazy import LazySource
from modality_forcing.datasets.common.lidar import project_points
from modality_forcing.datasets.common.poses import invert_pose, transform_points
from modality_forcing.errors import UserError


def unoccluded(source: RecordSource) -> list[Record]:
    """Returns all records without occlusion filtering."""
    assert isinstance(source, LazySource)
    reader = source.read
    assert isinstance(reader, partial)
    return [check(reader(frame, drop_occluded=False)) for frame in source.items]


def statistics(record: Record) -> list[float]:
    known = record.depth[record.valid]
    return [float(known.min()), float(np.median(known)), float(known.max())]


KITTI = {  # size, focal length, valid fraction, minimum, median and maximum depth
    "000000": ((370, 1224), 707.0493, 0.0447, [4.22, 11.67, 72.73]),
    "000001": ((375, 1242), 721.5377, 0.0400, [4.77, 12.50, 76.73]),
}


def test_kitti_scans(real_data: Path):
    source = kitti_raw.DATASET.open(real_data / "kitti_object", "train")
    records = unoccluded(source)
    assert [record.id for record in records] == [f"training/image_2/{name}" for name in KITTI]
    for record, (size, focal, part, expected) in zip(records, KITTI.values(), strict=True):
        assert record.depth.shape == size
        np.testing.assert_allclose(record.intrinsics[0, 0], focal, rtol=1e-6)
        assert abs(record.valid.mean() - part) < 1.2e-4  # of points; some share a pixel
        np.testing.assert_allclose(statistics(record), expected, atol=0.012)
        assert not record.valid[: size[0] // 4].any()  # the sky has no returns


def test_points_hidden_from_the_camera_are_dropped(real_data: Path):
    """A few percent of the points are occluded; hardly any on the open road."""
    source = kitti_raw.DATASET.open(real_data / "kitti_object", "train")
    for index, every in enumerate(unoccluded(source)):
        seen = check(source[index])
        assert 0.01 < 1 - seen.valid.sum() / every.valid.sum() < 0.07
        assert not (seen.valid & ~every.valid).any()
    every, seen = unoccluded(source)[1], source[1]
    road = np.s_[200:330, 330:600]
    assert (
        every.valid[road].sum() > 1500 and seen.valid[road].sum() > 0.999 * every.valid[road].sum()
    )


def test_kitti_depth_has_the_intrinsics_of_its_images(real_data: Path):
    """The camera list beside these images is another day's; their size contradicts it."""
    source = kitti_depth.DATASET.open(real_data / "metric3d_kitti_demo", "train")
    assert len(source) == 1
    record = check(source[0])
    assert record.id == "rgb/0000000005" and record.depth.shape == (375, 1242)
    np.testing.assert_allclose(
        record.intrinsics, [[721.5377, 0, 609.5593], [0, 721.5377, 172.854], [0, 0, 1]], rtol=1e-6
    )
    assert abs(record.valid.mean() - 0.195) < 6e-4
    np.testing.assert_allclose(statistics(record), [5.33, 13.84, 84.9], rtol=1e-3, atol=6e-3)


DDAD = {  # focal length, valid fraction, minimum, median and maximum depth
    "CAMERA_01": (2181.53, 0.0022, [5.13, 26.10, 176.0]),
    "CAMERA_05": (1057.07, 0.0050, [2.52, 17.12, 115.9]),
    "CAMERA_06": (1060.76, 0.0049, [2.43, 13.41, 126.5]),
}


def test_long_range_scans_of_another_time(real_data: Path):
    source = ddad.DATASET.open(real_data / "dgp_ddad_like", "every")
    records = {record.id.split("/")[1]: record for record in unoccluded(source)}
    assert records.keys() == DDAD.keys()
    for name, (focal, part, expected) in DDAD.items():
        record = records[name]
        assert record.depth.shape == (1216, 1936)
        np.testing.assert_allclose(record.intrinsics[0, 0], focal, rtol=1e-5)
        assert abs(record.valid.mean() - part) < 6e-5
        np.testing.assert_allclose(statistics(record), expected, rtol=1e-3, atol=6e-3)
    for index in range(len(source)):
        assert (
            0.9
            < source[index].valid.sum() / records[source[index].id.split("/")[1]].valid.sum()
            < 1
        )


def test_downscaled_sparse_depth_is_denser(real_data: Path):
    for source in (
        kitti_raw.DATASET.open(real_data / "kitti_object", "train"),
        ddad.DATASET.open(real_data / "dgp_ddad_like", "every"),
    ):
        record = source[0]
        small = check(center_crop_resize(record, 64))
        assert small.valid.mean() > 4 * record.valid.mean()
        assert np.isin(small.depth[small.valid], record.depth[record.valid]).all()


def test_calibration_of_another_day_is_refused(real_data: Path, tmp_path: Path):
    here = real_data / "kitti_object/training"
    for folder, file in (("image_2", "000001.png"), ("velodyne", "000001.bin")):
        (tmp_path / "training" / folder).mkdir(parents=True)
        (tmp_path / "training" / folder / file).symlink_to(here / folder / file)
    (tmp_path / "training/calib").mkdir()
    (tmp_path / "training/calib/000001.txt").symlink_to(here / "calib/000000.txt")
    with pytest.raises(
        UserError, match=r"is of images of 1224 x 370 pixels, but 000001\.png has 1242 x 375"
    ):
        kitti_raw.DATASET.open(tmp_path, "train")[0]


def test_scans_project_equally_at_low_resolution(real_data: Path):
    """Rasterizing to cells equals rasterizing to pixels first, except at edges of cells."""
    points = kitti_raw.read_scan(real_data / "kitti_object/training/velodyne/000001.bin")
    ahead = transform_points(
        points,
        np.array([[0, -1, 0, 0], [0, 0, -1, -0.08], [1, 0, 0, -0.27], [0, 0, 0, 1]], np.float64),
    )
    camera = Camera("pinhole", (375, 1242), 721.5377, 721.5377, 609.5593, 172.854)
    depth, valid = project_points(ahead, camera, (75, 207), drop_occluded=False)
    finer, known = project_points(ahead, camera, drop_occluded=False)
    blocks = np.where(known, finer, np.inf)[:, :1242].reshape(75, 5, 207, 6).min(axis=(1, 3))
    np.testing.assert_array_equal(valid, np.isfinite(blocks))
    np.testing.assert_array_equal(depth[valid], blocks[valid])


AV2 = "av2_lidar_only/adcf7d18-0510-35b0-a2fa-b4cea13a6d76"
SWEEP = 315973157959879000


@pytest.mark.parametrize(
    ("name", "size", "points"),
    [("ring_front_center", (2048, 1550), 12_425), ("ring_side_left", (1550, 2048), 17_886)],
)
def test_argoverse_scans(real_data: Path, name: str, size: tuple[int, int], points: int):
    """The calibration is of another log, so only point counts can be compared."""
    pytest.importorskip("pyarrow")
    sweep = argoverse2.read_scan(real_data / AV2 / f"sensors/lidar/{SWEEP}.feather")
    assert sweep.shape == (100_660, 3)
    distance = np.linalg.norm(sweep, axis=1)
    np.testing.assert_allclose(
        [distance.min(), np.median(distance), distance.max()], [3.10, 16.10, 218.8], rtol=2e-3
    )
    camera, extrinsics = argoverse2.read_camera(real_data / "av2_lidar_only/test_log", name)
    assert camera.size == size and camera.is_pinhole
    pixels, ok = camera.project(transform_points(sweep, invert_pose(extrinsics)))
    inside = ok & ((pixels >= 0) & (pixels < [size[1], size[0]])).all(axis=1)
    assert inside.sum() == points
    depth, valid = project_points(
        transform_points(sweep, invert_pose(extrinsics)), camera, drop_occluded=False
    )
    assert (
        0.98 * points < valid.sum() <= points
        and depth[valid].min() > 1
        and depth[valid].max() < 219
    )
    seen = project_points(transform_points(sweep, invert_pose(extrinsics)), camera)[1]
    assert 0.8 < seen.sum() / valid.sum() < 1


def test_argoverse_log_is_read(real_data: Path, tmp_path: Path):
    """A scan and poses of a real log, the calibration of another, and a constant image."""
    pytest.importorskip("pyarrow")
    log = tmp_path / "val/log"
    log.mkdir(parents=True)
    for part in ("city_SE3_egovehicle.feather", "sensors/lidar"):
        (log / part).parent.mkdir(exist_ok=True)
        (log / part).symlink_to(real_data / AV2 / part)
    (log / "calibration").symlink_to(real_data / "av2_lidar_only/test_log/calibration")
    path = log / "sensors/cameras/ring_front_center/315973157957428272.jpg"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (1550, 2048), (90, 90, 90)).save(path)
    source = argoverse2.DATASET.open(tmp_path, "val")
    assert len(source) == 1
    record = check(source[0])
    assert record.depth.shape == (2048, 1550) and 0.003 < record.valid.mean() < 0.004
    assert 4 < np.median(record.depth[record.valid]) < 30
