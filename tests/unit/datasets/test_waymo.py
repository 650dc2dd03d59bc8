"""Waymo frames, written field by field, give the depth of each stored projection."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from modality_forcing.data.records import Record, check
from modality_forcing.datasets.common.tfrecord import masked_crc
from modality_forcing.datasets.waymo import DATASET
from modality_forcing.errors import UserError

SIZE = (60, 100)
F, CX, CY = 60.0, 52.0, 28.0
ROOF, REAR = 1, 5
RNG = np.random.default_rng(11)


def varint(number: int) -> bytes:
    number %= 2**64
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def counted(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def doubles(field: int, values) -> bytes:
    """A repeated double that is not packed, the proto2 default that Waymo uses."""
    return b"".join(varint(field << 3 | 1) + struct.pack("<d", value) for value in np.ravel(values))


def transform(field: int, pose: np.ndarray) -> bytes:
    return counted(field, doubles(1, pose))


def matrix(field: int, numbers: np.ndarray) -> bytes:
    """A compressed MatrixFloat or MatrixInt32: packed data, unpacked dims."""
    floats = numbers.dtype.kind == "f"
    data = (
        numbers.astype("<f4").tobytes()
        if floats
        else b"".join(varint(int(value)) for value in numbers.ravel())
    )
    shape = counted(2, b"".join(number(1, side) for side in numbers.shape))
    return counted(field, zlib.compress(counted(1, data) + shape))


def turned(roll: float, pitch: float, yaw: float, at: tuple[float, float, float]) -> np.ndarray:
    (cr, cp, cy), (sr, sp, sy) = np.cos([roll, pitch, yaw]), np.sin([roll, pitch, yaw])
    x = np.array([[1, 0, 0], [0, cr, -sr], [0, sr, cr]])
    y = np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = z @ y @ x, at
    return pose


FRAME = turned(0.01, -0.02, 0.7, (1e5, -2e5, 30.0))
TAKEN = {
    1: turned(0.01, -0.02, 0.71, (1e5 + 0.4, -2e5 + 0.3, 30.0)),
    2: turned(0.01, -0.02, 0.72, (1e5 + 0.5, -2e5, 30.0)),
}
MOUNTED = {1: turned(0, 0.01, 0.0, (1.5, 0.0, 2.1)), 2: turned(0, 0, 0.6, (1.5, 0.1, 2.1))}
LASERS = {ROOF: turned(0, 0, 2.5, (1.4, 0, 2.2)), REAR: turned(0.02, 0, -0.3, (-1, 0, 1.0))}
INCLINATIONS = np.array([-0.3, -0.21, -0.15, -0.08, -0.05, -0.01, 0.02, 0.05])
LEAST, MOST = -0.4, 0.2


def scene() -> tuple[
    dict[int, np.ndarray],
    dict[int, np.ndarray],
    np.ndarray,
    dict[int, dict[tuple[int, int], float]],
]:
    """Ranges, projections, the roof's poses, and the expected depth of each camera by (x, y)."""
    ranges = {ROOF: RNG.uniform(3, 70, (8, 72, 4)), REAR: RNG.uniform(3, 70, (4, 36, 4))}
    for name, image in ranges.items():
        image[..., 0][RNG.random(image.shape[:2]) < 0.2] = -1  # no return
        ranges[name] = image.astype(np.float32)
    poses = np.empty((8, 72, 6), np.float32)
    for column in range(72):  # the car drives and turns while the scanner does
        poses[:, column] = (0.01, -0.02, 0.7 + column * 2e-4, 1e5 + column * 0.0625, -2e5, 30.0)
    projections = {
        name: np.zeros((*image.shape[:2], 6), np.int32) for name, image in ranges.items()
    }
    depth: dict[int, dict[tuple[int, int], float]] = {1: {}, 2: {}}
    for name, image in ranges.items():
        projections[name][image[..., 0] < 0, :3] = 1, 7, 7  # unused where there is no return
        rows, columns = image.shape[:2]
        steps = (np.arange(rows) + 0.5) / rows
        inclinations = (INCLINATIONS if name == ROOF else LEAST + steps * (MOST - LEAST))[::-1]
        correction = np.arctan2(LASERS[name][1, 0], LASERS[name][0, 0])
        for row, column in np.argwhere(image[..., 0] > 0):
            azimuth = ((columns - column - 0.5) / columns * 2 - 1) * np.pi - correction
            up, r = inclinations[row], float(image[row, column, 0])
            point = np.array(
                [
                    np.cos(azimuth) * np.cos(up) * r,
                    np.sin(azimuth) * np.cos(up) * r,
                    np.sin(up) * r,
                    1,
                ]
            )
            cell = [float(value) for value in poses[row, column]] if name == ROOF else []
            world = (turned(*cell[:3], tuple(cell[3:])) if cell else FRAME) @ LASERS[name] @ point  # pyright: ignore
            slot = 0
            for camera in (1, 2):
                x, y, z, _ = np.linalg.inv(TAKEN[camera] @ MOUNTED[camera]) @ world
                u, v = (
                    int(np.floor(c - F * side / x)) if x > 0.5 else -1
                    for c, side in ((CX, y), (CY, z))
                )
                if 0 <= u < SIZE[1] and 0 <= v < SIZE[0]:
                    projections[name][row, column, slot : slot + 3] = camera, u, v
                    depth[camera][u, v] = min(x, depth[camera].get((u, v), np.inf))
                    slot += 3
    return ranges, projections, poses, depth


def jpeg(value: int, size: tuple[int, int] = SIZE, orientation: int = 1) -> bytes:
    written, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.new("RGB", (size[1], size[0]), (value, value, value))
    image.save(written, "JPEG", exif=exif)
    return written.getvalue()


def message(ranges, projections, poses, *, jpegs=None, car_moves: bool = True) -> bytes:
    images = jpegs or {1: jpeg(90), 2: jpeg(160)}
    context = counted(1, b"1005081002024129653_5313_150_5333_150")
    for name in (2, 1):
        terms = (F, F, CX, CY, 0.04, -0.33, 0.001, 0.0, 0.0)
        sides = number(4, SIZE[1]) + number(5, SIZE[0]) + number(6, 4)
        context += counted(
            2, number(1, name) + doubles(2, terms) + transform(3, MOUNTED[name]) + sides
        )
    roof = (
        number(1, ROOF)
        + doubles(2, INCLINATIONS)
        + doubles(3, [INCLINATIONS[0]])
        + doubles(4, [INCLINATIONS[-1]])
    )
    context += counted(3, roof + transform(5, LASERS[ROOF]))
    context += counted(
        3, number(1, REAR) + doubles(3, [LEAST]) + doubles(4, [MOST]) + transform(5, LASERS[REAR])
    )
    frame = counted(1, context) + number(2, 1553735853462203) + transform(3, FRAME)
    for name, image in images.items():
        moved = transform(3, TAKEN[name]) if car_moves else b""
        frame += counted(
            4,
            number(1, name)
            + counted(2, image)
            + moved
            + varint(5 << 3 | 1)
            + struct.pack("<d", 1.5e9),
        )
    for name in (REAR, ROOF, 3):  # the third has no returns
        first = b""
        if name in ranges:
            first = (
                matrix(2, ranges[name])
                + matrix(3, projections[name])
                + (matrix(4, poses) if name == ROOF else b"")
            )
        second = matrix(2, np.full((8, 72, 4), 2.0, np.float32)) if name == ROOF else b""
        frame += counted(5, number(1, name) + counted(2, first) + counted(3, second))
    return frame + counted(8, number(1, 1))


def write(
    root: Path,
    records: list[bytes],
    split: str = "training",
    name: str = "segment-10050_with_camera_labels",
) -> Path:
    path = root / split / f"{name}.tfrecord"
    path.parent.mkdir(parents=True, exist_ok=True)
    framed = [part for record in records for part in (struct.pack("<Q", len(record)), record)]
    path.write_bytes(b"".join(part + struct.pack("<I", masked_crc(part)) for part in framed))
    return path


@pytest.fixture(scope="module")
def written():
    return scene()


def read(root: Path, index: int) -> Record:
    """A record without occlusion filtering."""
    source = DATASET.open(root, "training")
    return check(source.read(source.items[index], drop_occluded=False))  # pyright: ignore


def test_depth_is_at_the_stored_projections(tmp_path: Path, written):
    ranges, projections, poses, depth = written
    write(tmp_path, [message(ranges, projections, poses)])
    source = DATASET.open(tmp_path, "training")
    assert len(source) == 5
    for index, (camera, value) in enumerate([(1, 90), (2, 160)]):
        record = read(tmp_path, index)
        at = {(int(x), int(y)): float(record.depth[y, x]) for y, x in np.argwhere(record.valid)}
        assert at.keys() == depth[camera].keys() and len(at) > 20
        np.testing.assert_allclose(
            [at[key] for key in depth[camera]], list(depth[camera].values()), rtol=1e-4
        )
        assert (record.image == value).all()
        np.testing.assert_allclose(
            record.intrinsics, [[F, 0, CX - 0.5], [0, F, CY - 0.5], [0, 0, 1]]
        )
        name = {1: "FRONT", 2: "FRONT_LEFT"}[camera]
        assert record.id == f"training/segment-10050_with_camera_labels/000/{name}"
        assert record.unit == "metric" and record.source == "waymo"


def test_both_slots_of_projections_are_used(written):
    _, projections, _, _ = written
    assert any((one[..., 3] == 2).any() for one in projections.values()), (
        "the scene has no point that two cameras see"
    )
    assert any((one[..., 0] == 2).any() for one in projections.values())


def test_image_without_a_pose_uses_the_pose_of_the_frame(tmp_path: Path, written):
    ranges, projections, poses, _ = written
    write(tmp_path, [message(ranges, projections, poses, car_moves=False)])
    record = read(tmp_path, 0)
    write(tmp_path, [message(ranges, projections, poses)], name="segment-2")
    moved = read(tmp_path, 5)
    np.testing.assert_array_equal(record.valid, moved.valid)  # pixels are stored, distances are not
    assert 0.1 < np.abs(record.depth - moved.depth)[moved.valid].max() < 3


def test_frames_are_numbered_across_files_and_junk_is_skipped(tmp_path: Path, written):
    ranges, projections, poses, _ = written
    frame = message(ranges, projections, poses)
    write(tmp_path, [frame, frame], "validation")
    (tmp_path / "validation/._segment-10050_with_camera_labels.tfrecord").write_bytes(
        b"\x00\x05\x16\x07"
    )
    source = DATASET.open(tmp_path, "validation")
    assert len(source) == 10 and source[6].id.endswith("/001/FRONT_LEFT")
    with pytest.raises(UserError, match=r"frame 1 has no image of SIDE_RIGHT; leave the frame out"):
        source[9]
    with pytest.raises(
        UserError,
        match=r"holds no frame of Waymo Open's training split; its layout is training/\*\.tfrecord",
    ):
        DATASET.open(tmp_path, "training")


def test_points_that_only_the_scanners_see_are_dropped(tmp_path: Path):
    projections = np.zeros((8, 72, 6), np.int32)
    ranges = np.full((8, 72, 4), -1, np.float32)
    azimuths = ((72 - np.arange(72) - 0.5) / 72 * 2 - 1) * np.pi
    ahead = np.argsort(np.abs(azimuths + 0.0))[:9]
    poses = np.zeros((8, 72, 6), np.float32)
    poses[:] = (0.01, -0.02, 0.7, 1e5, -2e5, 30)
    for i, column in enumerate(sorted(ahead)):
        ranges[3, column, 0] = 40 if i == 4 else 10
        # A block of nine pixels, far in the middle.
        projections[3, column, :3] = (1, 40 + i % 3, 30 + i // 3)
    ranges[4, ahead[0], 0], projections[4, ahead[0], :3] = 0.3, (1, 10, 10)  # and the car itself
    write(tmp_path, [message({ROOF: ranges}, {ROOF: projections}, poses, car_moves=False)])
    record = DATASET.open(tmp_path, "training")[0]
    assert record.valid.sum() == 8 and not record.valid[31, 41]
    assert read(tmp_path, 0).valid.sum() == 9


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda record: record[:-3], "cannot be read as frames of Waymo Open"),
        (lambda record: b"\x0b" + record, "cannot be read as frames of Waymo Open"),
        (lambda record: b"", "cannot be read as frames of Waymo Open"),
        (lambda record: record + transform(3, np.eye(3)), "cannot be read as frames of Waymo Open"),
        (
            lambda record: record.replace(b"\x78\x9c", b"\x78\x9d"),
            "cannot be read as frames of Waymo Open",
        ),
        (
            lambda record: record + counted(4, number(1, 1) + counted(2, b"JFIF")),
            "cannot be read as frames of Waymo Open",
        ),
        (
            lambda record: record + counted(4, number(1, 1) + counted(2, jpeg(9, (30, 50)))),
            "image of FRONT in frame 0 is 50 x 30 pixels, its camera 100 x 60",
        ),
        (
            lambda record: record + counted(5, number(1, 1)) + counted(5, number(1, 5)),
            "its depth has no valid pixel",
        ),
    ],
)
def test_damaged_frames_are_named(tmp_path: Path, written, change, error: str):
    ranges, projections, poses, _ = written
    write(tmp_path, [change(message(ranges, projections, poses))])
    with pytest.raises(UserError, match=error) as caught:
        DATASET.open(tmp_path, "training")[0]
    assert "\n" not in str(caught.value) and "segment-10050" in str(caught.value)


def test_truncated_file_is_reported_on_opening(tmp_path: Path, written):
    ranges, projections, poses, _ = written
    path = write(tmp_path, [message(ranges, projections, poses)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        UserError, match=r"segment-10050_with_camera_labels\.tfrecord: was cut off in its record 0"
    ):
        DATASET.open(tmp_path, "training")
