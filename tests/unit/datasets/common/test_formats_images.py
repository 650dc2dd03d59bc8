"""Files of benchmarks: numbers are read to the bit, damaged files are one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from modality_forcing.datasets.common import formats as stored
from modality_forcing.errors import UserError
from tests import layouts

RAMP = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_image_with_an_orientation_is_refused_unless_it_is_a_photograph(tmp_path: Path, suffix):
    path = tmp_path / f"a{suffix}"
    red = np.zeros((2, 4, 3), np.uint8)
    red[:, :2, 0] = 200
    Image.fromarray(red).save(path, subsampling=0, quality=95)
    plain = stored.read_rgb(path)
    layouts.tag(path, 6, turned=False)  # to be rotated by 90 degrees for display
    with pytest.raises(UserError, match=r"its EXIF orientation is 6.*exiftool -Orientation="):
        stored.read_rgb(path)
    upright = np.rot90(plain, -1)
    for size, expected in (((2, 4), plain), (None, plain), ((4, 2), upright), ((3, 3), plain)):
        photograph = stored.read_photograph(path, size)
        assert photograph.dtype == np.uint8
        np.testing.assert_allclose(photograph.astype(int), expected, atol=8)


def test_gray_image_has_three_channels(tmp_path: Path):
    Image.fromarray(RAMP[..., 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(
        stored.read_rgb(tmp_path / "a.png"), RAMP[..., :1].repeat(3, axis=2)
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_arrays_with_and_without_a_channel(tmp_path: Path, dtype: type, shape: tuple[int, ...]):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    np.save(tmp_path / "a.npy", array.reshape(shape))
    read = stored.read_array(tmp_path / "a.npy")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, array)


def test_raw_floats_are_little_endian_rows(tmp_path: Path):
    (tmp_path / "a.JPG").write_bytes(
        bytes.fromhex("0000803f 00000040 00004040 0000807f 000000bf 00000000")
    )
    depth = stored.read_raw_floats(tmp_path / "a.JPG", (2, 3))
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, [[1, 2, 3], [np.inf, -0.5, 0]])


def test_matrix_of_four_rows_gives_its_upper_left(tmp_path: Path):
    (tmp_path / "k.txt").write_text("577.5 0 318.9 0\n0 578.7 242.7 0\n0 0 1 0\n0 0 0 1\n\n")
    np.testing.assert_array_equal(
        stored.read_matrix(tmp_path / "k.txt"), [[577.5, 0, 318.9], [0, 578.7, 242.7], [0, 0, 1]]
    )


def write_sixteen_bits(path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.uint16)).save(path, "PNG")


def write_objects(path: Path) -> None:
    with open(path, "wb") as opened:
        np.save(opened, np.array([{}]), allow_pickle=True)


def write_line(path: Path) -> None:
    with open(path, "wb") as opened:
        np.save(opened, np.zeros(3))


def write_nothing(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("1 2\n3\n")


def leave_out(path: Path) -> None:
    assert not path.exists()


def raw_floats(path: Path) -> np.ndarray:
    return stored.read_raw_floats(path, (2, 3))


READERS = (stored.read_rgb, stored.read_array, stored.read_matrix, raw_floats)


@pytest.mark.parametrize(
    ("read", "write"),
    [
        *((read, leave_out) for read in READERS),
        *((read, write_nothing) for read in READERS),
        (stored.read_rgb, write_sixteen_bits),
        (stored.read_array, write_objects),
        (stored.read_array, write_line),
        (stored.read_matrix, write_text),
        (raw_floats, write_text),
    ],
)
def test_file_of_another_format_is_one_line(
    tmp_path: Path, read: Callable[[Path], np.ndarray], write: Callable[[Path], None]
):
    path = tmp_path / "file"
    write(path)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_different_sizes_are_reported():
    with pytest.raises(UserError, match=r"d.png: is 3 x 2 pixels, but its image i.jpg 4 x 2"):
        stored.check_same_size(RAMP, np.zeros((2, 3)), Path("x/i.jpg"), Path("x/d.png"))
    stored.check_same_size(RAMP, np.zeros((2, 4)), Path("i"), Path("d"))
