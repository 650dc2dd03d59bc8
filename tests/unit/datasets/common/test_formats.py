"""File formats: exact encodings are read to the bit, and damaged files refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.datasets.common import formats
from modality_forcing.errors import UserError

RNG = np.random.default_rng(5)


def png(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path, "PNG")
    return path


def packed(depth: np.ndarray) -> np.ndarray:
    """Returns the RGBA in which OpenCV, reading BGRA, sees the bytes of the floats."""
    blue, green, red, alpha = np.moveaxis(
        depth.astype("<f4").view(np.uint8).reshape(*depth.shape, 4), -1, 0
    )
    return np.stack([red, green, blue, alpha], axis=-1)


@pytest.mark.parametrize("per_unit", [1000, 256, 512, 5000])
def test_counts_are_scaled_by_their_unit(tmp_path: Path, per_unit: float):
    counts = np.array([[0, 1, 65535], [256, 5000, 65534]], np.uint16)
    depth = formats.read_uint16_depth(png(tmp_path / "d.png", counts), per_unit)
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, (counts / per_unit).astype(np.float32))


def test_counts_that_mean_unknown_are_invalid(tmp_path: Path):
    counts = np.array([[0, 1, 65535], [256, 5000, 65534]], np.uint16)
    depth = formats.read_uint16_depth(png(tmp_path / "d.png", counts), 1000, invalid=(0, 65535))
    np.testing.assert_array_equal(depth, np.float32([[0, 0.001, 0], [0.256, 5, 65.534]]))


def test_rotated_bits_are_decoded(tmp_path: Path):
    millimeters = np.array([[0, 1, 65535], [2720, 9870, 8191]], np.uint16)
    stored = (millimeters << 3) | (millimeters >> 13)
    # 9870 wraps around.
    assert stored[0, 2] == 65535 and stored[1, 0] == 21760 and stored[1, 1] == 13425
    depth = formats.read_sunrgbd_depth(png(tmp_path / "d.png", stored))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, (millimeters / 1000).astype(np.float32))


def test_floats_packed_into_rgba_are_decoded(tmp_path: Path):
    depth = np.float32([[1.5, 1000.25, 3e38], [0.1, -2.0, np.inf]])
    path = png(tmp_path / "d.png", packed(depth))
    # 1.5 is 00 00 c0 3f: c0 is the third byte, which OpenCV calls red and Pillow has first
    assert Image.open(path).getpixel((0, 0)) == (0xC0, 0x00, 0x00, 0x3F)
    read = formats.read_packed_floats(path)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, depth)


def test_packed_floats_equal_those_of_opencv(tmp_path: Path):
    cv2 = pytest.importorskip("cv2")
    depth = RNG.uniform(0.1, 500, (7, 5)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "d.png"), depth.view("<u1").reshape(7, 5, 4))
    np.testing.assert_array_equal(formats.read_packed_floats(tmp_path / "d.png"), depth)


def test_disparity_in_base_255_is_decoded(tmp_path: Path):
    colors = np.array([[[0, 0, 0], [1, 2, 3]], [[0, 254, 254], [3, 0, 255]]], np.uint8)
    disparity = formats.read_base_255(png(tmp_path / "d.png", colors))
    assert disparity.dtype == np.float32
    expected = [[0, (65025 + 510 + 3) / 1000], [(254 * 255 + 254) / 1000, (3 * 65025 + 255) / 1000]]
    np.testing.assert_array_equal(disparity, np.float32(expected))


@pytest.mark.parametrize(
    ("kind", "scale"), [("<f4", "-1.000000"), (">f4", "1"), ("<f4", "-1e0"), ("<f4", "-0.003")]
)
@pytest.mark.parametrize(
    "head", ["Pf\n3 2\n{}\n", "Pf\n3 2 \n{} \n", "Pf \r\n3 2\r\n{}\r\n", "Pf\n3\n2\n{}\n"]
)
def test_pfm_is_bottom_up_and_its_scale_gives_the_byte_order(
    tmp_path: Path, kind: str, scale: str, head: str
):
    # A first sample whose first byte is a line break must not be read as part of the header.
    first = np.frombuffer(b"\n\n\n@" if kind == "<f4" else b"\n\n\n\n", kind)[0]
    depth = np.array([[1.5, np.inf, 0], [first, -2, 7]], np.float32)
    (tmp_path / "d.pfm").write_bytes(
        head.format(scale).encode() + depth[::-1].astype(kind).tobytes()
    )
    read = formats.read_pfm(tmp_path / "d.pfm")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, depth)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int16])
def test_hdf5_is_read_unchanged(tmp_path: Path, dtype: type):
    h5py = pytest.importorskip("h5py")
    stored = np.arange(6).reshape(2, 3).astype(dtype)
    with h5py.File(tmp_path / "d.hdf5", "w") as opened:
        opened["dataset"] = stored
        opened["words"] = "none"
        opened.create_group("group")
    read = formats.read_hdf5(tmp_path / "d.hdf5", "dataset")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, stored)
    for key in ("depth", "group"):
        with pytest.raises(UserError, match=f"d.hdf5: holds no data set '{key}'"):
            formats.read_hdf5(tmp_path / "d.hdf5", key)
    with pytest.raises(UserError, match=r"d.hdf5: holds .*, not numbers"):
        formats.read_hdf5(tmp_path / "d.hdf5", "words")


def test_npz_is_read_unchanged(tmp_path: Path):
    stored = RNG.random((2, 3), np.float32)
    np.savez(tmp_path / "d.npz", data=stored, words=np.array(["a"]))
    np.testing.assert_array_equal(formats.read_npz(tmp_path / "d.npz", "data"), stored)
    with pytest.raises(UserError, match=r"d.npz: has no array `arr_0`, but data, words"):
        formats.read_npz(tmp_path / "d.npz", "arr_0")
    with pytest.raises(UserError, match=r"d.npz: `words` has type <U1, not numbers"):
        formats.read_npz(tmp_path / "d.npz", "words")


def test_npz_with_pickled_objects_is_refused(tmp_path: Path):
    np.savez(tmp_path / "d.npz", data=np.array([{}]))
    with pytest.raises(UserError, match=r"d.npz: cannot be read as a .npz"):
        formats.read_npz(tmp_path / "d.npz", "data")


def test_pose_has_four_finite_rows(tmp_path: Path):
    (tmp_path / "p.txt").write_text("  7.0e-001 0 0 -9.0e-001\n0 1 0 2\n0 0 1 3\n0 0 0 1\n")
    np.testing.assert_array_equal(formats.read_pose(tmp_path / "p.txt")[0], [0.7, 0, 0, -0.9])
    (tmp_path / "p.txt").write_text("-inf 0 0 0\n0 1 0 2\n0 0 1 3\n0 0 0 1\n")
    with pytest.raises(UserError, match=r"p.txt: the pose is not finite"):
        formats.read_pose(tmp_path / "p.txt")
    (tmp_path / "p.txt").write_text("1 0 0\n0 1 0\n0 0 1\n")
    with pytest.raises(UserError, match=r"p.txt: holds numbers of shape \(3, 3\)"):
        formats.read_pose(tmp_path / "p.txt")


def in_eight_bits(path: Path) -> None:
    png(path, np.ones((2, 3), np.uint8))


def in_color(path: Path) -> None:
    png(path, np.ones((2, 3, 3), np.uint8))


def in_sixteen_bits(path: Path) -> None:
    png(path, np.ones((2, 3), np.uint16))


def junk(path: Path) -> None:
    path.write_bytes(b"\x00\x05\x16\x07" * 1024)


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def cut_pfm(path: Path) -> None:
    path.write_bytes(b"Pf\n3 2\n-1\n" + bytes(23))


def empty_pfm(path: Path) -> None:
    path.write_bytes(b"Pf\n0 2\n-1\n")


def color_pfm(path: Path) -> None:
    path.write_bytes(b"PF\n1 1\n-1\n" + bytes(12))


def cut_zip(path: Path) -> None:
    with open(path, "wb") as opened:
        np.savez(opened, data=np.zeros(1000))
    path.write_bytes(path.read_bytes()[:900])


def lone_array(path: Path) -> None:
    with open(path, "wb") as opened:
        np.save(opened, np.zeros((2, 2)))


def no_file(path: Path) -> None:
    assert not path.exists()


def millimeters(path: Path) -> np.ndarray:
    return formats.read_uint16_depth(path, 1000)


def hdf5(path: Path) -> np.ndarray:
    pytest.importorskip("h5py")
    return formats.read_hdf5(path, "dataset")


def npz(path: Path) -> np.ndarray:
    return formats.read_npz(path, "data")


READERS = (
    millimeters,
    formats.read_sunrgbd_depth,
    formats.read_packed_floats,
    formats.read_base_255,
    formats.read_pfm,
    formats.read_pose,
    formats.read_text,
    hdf5,
    npz,
)


@pytest.mark.parametrize(
    ("read", "write"),
    [
        *((read, no_file) for read in READERS),
        *((read, nothing) for read in READERS if read is not formats.read_text),
        *((read, junk) for read in READERS if read is not formats.read_text),
        *((millimeters, write) for write in (in_eight_bits, in_color)),
        *((formats.read_packed_floats, write) for write in (in_color, in_sixteen_bits)),
        *((formats.read_base_255, write) for write in (in_eight_bits, in_sixteen_bits)),
        *((formats.read_pfm, write) for write in (cut_pfm, empty_pfm, color_pfm)),
        *((npz, write) for write in (cut_zip, lone_array)),
    ],
)
def test_file_of_another_format_is_one_line(
    tmp_path: Path, read: Callable[[Path], object], write: Callable[[Path], None]
):
    path = tmp_path / "file"
    write(path)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
