"""KITTI scans in both layouts: a scan becomes depth at the pixels of its points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import modality_forcing.datasets
from modality_forcing.data.records import Notes, check
from modality_forcing.datasets.kitti_raw import DATASET, DAYS, TEST_DRIVES
from modality_forcing.errors import UserError

SIZE = (60, 100)
P = np.array([[50.0, 0, 48, 2.5], [0, 50, 31, 0.1], [0, 0, 1, 0.004]])
R0 = np.array([[0.99, -0.1411, 0], [0.1411, 0.99, 0], [0, 0, 1]])
TR = np.array([[0.0, -1, 0, 0.02], [0, 0, -1, -0.06], [1, 0, 0, -0.3]])
DRIVE = "2011_09_26_drive_0001_sync"


def write_image(path: Path, size: tuple[int, int] = SIZE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(image).save(path)
    return image


def scan(path: Path, pixels: np.ndarray, z: np.ndarray) -> None:
    """Writes points of depth z at pixels [n 2], by the inverse of the devkit's equation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    homogeneous = np.concatenate([pixels, np.ones((len(z), 1))], axis=1) * z[:, None]
    rectified = np.linalg.solve(P[:, :3], (homogeneous - P[:, 3]).T)
    points = (TR[:, :3].T @ (np.linalg.solve(R0, rectified) - TR[:, 3:])).T
    points = np.concatenate([points, [[np.inf, 0, 0], [np.nan, 1, 1]]])  # invalid points
    np.concatenate([points, np.full((len(points), 1), 0.3)], axis=1).astype("<f4").tofile(path)


def row(key: str, numbers: np.ndarray) -> str:
    return f"{key}: " + " ".join(f"{number:.12e}" for number in np.ravel(numbers)) + "\n"


def raw(
    root: Path, pixels: np.ndarray, z: np.ndarray, drive: str = DRIVE, size: tuple[int, int] = SIZE
) -> np.ndarray:
    day = root / drive[:10]
    image = write_image(day / drive / "image_02/data/0000000007.png")
    scan(day / drive / "velodyne_points/data/0000000007.bin", pixels, z)
    (day / "calib_cam_to_cam.txt").write_text(
        "calib_time: 09-Jan-2012 13:57:47\ncorner_dist: 9.95e-02\n"
        + row("S_rect_02", np.array([size[1], size[0]]))
        + row("R_rect_00", R0)
        + row("R_rect_02", np.eye(3))
        + row("P_rect_02", P)
    )
    (day / "calib_velo_to_cam.txt").write_text(
        "calib_time: 15-Mar-2012 11:37:16\n"
        + row("R", TR[:, :3])
        + row("T", TR[:, 3])
        + "delta_f: 0 0\n"
    )
    return image


def objects(
    root: Path,
    pixels: np.ndarray,
    z: np.ndarray,
    name: str = "000003",
    size: tuple[int, int] = SIZE,
) -> np.ndarray:
    image = write_image(root / f"training/image_2/{name}.png", size)
    scan(root / f"training/velodyne/{name}.bin", pixels, z)
    (root / "training/calib").mkdir(exist_ok=True)
    (root / f"training/calib/{name}.txt").write_text(
        row("P2", P) + row("R0_rect", R0) + row("Tr_velo_to_cam", TR) + "\n"
    )
    return image


PIXELS = np.array(
    [[10.0, 40.0], [30.2, 50.3], [99.0, 59.0], [60.4, 30.4], [60.0, 30.0], [200.0, 30.0]]
)
DEPTH = np.array([5.0, 7.5, 60.0, 12.0, 11.0, 9.0])


@pytest.mark.parametrize("write", [raw, objects])
def test_scan_gives_depth_of_the_left_image(tmp_path: Path, write):
    image = write(tmp_path, PIXELS, DEPTH)
    source = DATASET.open(tmp_path, "train")
    assert len(source) == 1
    record = check(source[0])
    np.testing.assert_array_equal(record.image, image)
    found = {(int(x), int(y)): float(record.depth[y, x]) for y, x in np.argwhere(record.valid)}
    assert found.keys() == {(10, 40), (30, 50), (99, 59), (60, 30)}
    # The nearer of two in a pixel.
    expected = {(10, 40): 5.0, (30, 50): 7.5, (99, 59): 60.0, (60, 30): 11.0}
    np.testing.assert_allclose([found[at] for at in expected], list(expected.values()), rtol=1e-5)
    np.testing.assert_allclose(record.intrinsics, [[50, 0, 48], [0, 50, 31], [0, 0, 1]])
    assert record.unit == "metric" and record.source == "kitti_raw" and record.caption == ""
    assert record.id in ("training/image_2/000003", f"2011_09_26/{DRIVE}/image_02/data/0000000007")


def test_points_occluded_from_the_camera_are_dropped(tmp_path: Path):
    rows, columns = np.mgrid[20:40, 40:60]
    near = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(float)
    near = near[~((near == [50, 30]).all(axis=1))]
    raw(tmp_path, np.concatenate([near, [[50.0, 30.0]]]), np.array([5.0] * len(near) + [20.0]))
    record = DATASET.open(tmp_path, "train")[0]
    assert record.valid.sum() == len(near) and not record.valid[30, 50]


def test_test_drives_are_a_separate_split(tmp_path: Path):
    raw(tmp_path, PIXELS, DEPTH)
    raw(tmp_path, PIXELS, DEPTH, "2011_09_26_drive_0002_sync")
    objects(tmp_path, PIXELS, DEPTH)
    train, test = DATASET.open(tmp_path, "train"), DATASET.open(tmp_path, "test")
    assert [train[i].id for i in range(len(train))] == [
        f"2011_09_26/{DRIVE}/image_02/data/0000000007",
        "training/image_2/000003",
    ]
    assert [test[i].id for i in range(len(test))] == [
        "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000007"
    ]


def test_test_drives_are_those_of_the_benchmark():
    listing = Path(modality_forcing.datasets.__file__).with_name("lists") / "kitti.txt"
    lines = [line.lstrip("# ") for line in listing.read_text().splitlines()]
    assert {line.split("/")[1] for line in lines if "/image_02/data/" in line} == TEST_DRIVES


def test_frames_without_a_scan_are_one_line_and_hidden_files_none(tmp_path: Path):
    raw(tmp_path, PIXELS, DEPTH)
    drive = tmp_path / "2011_09_26" / DRIVE
    for number in range(4):  # the real drives lack the first and last five, of depth
        write_image(drive / f"image_02/data/000000000{number}.png")
    (drive / "image_02/data/._0000000007.png").write_bytes(b"\x00\x05\x16\x07")
    (drive / "velodyne_points/data/._0000000000.bin").write_bytes(b"\x00\x05\x16\x07")
    source = DATASET.open(tmp_path, "train")
    assert isinstance(source, Notes) and len(source) == 1
    names = (f"2011_09_26/{DRIVE}/image_02/data/000000000{number}.png" for number in range(3))
    listed = ", ".join(names)
    assert source.notes() == [f"{tmp_path}: 4 of 5 images have no depth ({listed}, ...)"]


def test_each_frame_has_its_own_size_and_calibration(tmp_path: Path):
    for name, (size, (focal, cx, cy)) in zip(
        ("000000", "000001"), list(DAYS.items())[:2], strict=True
    ):
        objects(tmp_path, PIXELS, DEPTH, name, size)
        day = np.array([[focal, 0, cx, 44.9], [0, focal, cy, 0.2], [0, 0, 1, 0.003]])
        path = tmp_path / f"training/calib/{name}.txt"
        path.write_text(row("P2", day) + row("R0_rect", R0) + row("Tr_velo_to_cam", TR))
    source = DATASET.open(tmp_path, "train")
    assert [check(source[i]).depth.shape for i in range(2)] == [(375, 1242), (370, 1224)]
    np.testing.assert_allclose(
        [source[i].intrinsics[0, 0] for i in range(2)], [721.5377, 707.0493], rtol=1e-6
    )
    (tmp_path / "training/calib/000000.txt").write_bytes(
        (tmp_path / "training/calib/000001.txt").read_bytes()
    )
    with pytest.raises(
        UserError,
        match=r"000000\.txt: is of images of 1224 x 370 pixels, but 000000\.png has 1242 x 375",
    ):
        DATASET.open(tmp_path, "train")[0]


def test_calibration_of_another_size_is_refused(tmp_path: Path):
    raw(tmp_path, PIXELS, DEPTH, size=(375, 1242))
    with pytest.raises(
        UserError,
        match=r"calib_cam_to_cam\.txt: is of images of 1242 x 375 pixels, but .* has 100 x 60",
    ):
        DATASET.open(tmp_path, "train")[0]
    # The principal point would be far from the center.
    objects(tmp_path, PIXELS, DEPTH, size=(60, 140))
    with pytest.raises(
        UserError, match=r"000003\.txt: is of other images, but 000003\.png has 140 x 60"
    ):
        DATASET.open(tmp_path, "train")[1]


def test_user_errors_are_one_line(tmp_path: Path):
    with pytest.raises(UserError, match="no such folder"):
        DATASET.open(tmp_path / "none", "train")
    with pytest.raises(
        UserError, match=r"holds no frame of KITTI's test split; its layout is 2011_09_26/"
    ):
        DATASET.open(tmp_path, "test")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("velodyne/000003.bin", b"123", "holds 3 bytes, not 16 for each point"),
        ("velodyne/000003.bin", b"", "holds 0 bytes"),
        (
            "velodyne/000003.bin",
            np.full((4, 4), np.nan, "<f4").tobytes(),
            "its depth has no valid pixel",
        ),
        ("image_2/000003.png", b"\x89PNG", "cannot be read as an image"),
        ("calib/000003.txt", b"\xff\xfe", "is not text in UTF-8"),
        ("calib/000003.txt", b"P2: 1 2 3\n", "holds no P2 of 12 numbers"),
        ("calib/000003.txt", b"R0_rect: 1\n", "holds no P2 of 12 numbers"),
        ("calib/000003.txt", b"P2: nan 0 0 0 0 0 0 0 0 0 1 0\n", "holds no P2 of 12 numbers"),
        (
            "calib/000003.txt",
            b"P2: 0 0 48 0 0 50 31 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam:"
            + b" 1" * 12,
            "no camera",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: bytes, message: str):
    objects(tmp_path, PIXELS, DEPTH)
    (tmp_path / "training" / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        DATASET.open(tmp_path, "train")[0]
    assert "\n" not in str(caught.value) and "000003" in str(caught.value)
