"""Image and depth files: what is read, and one line for every mistake."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps, PngImagePlugin

from modality_forcing.data import files
from modality_forcing.data.files import DepthFormat, read_depth, read_image
from modality_forcing.errors import UserError
from modality_forcing.viz import images

RAMP = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


def save(array: np.ndarray, path: Path, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def one_line(caught: pytest.ExceptionInfo[UserError], path: Path) -> str:
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"{path}: ") and "; " in message
    return message


def test_colors_are_unchanged(tmp_path: Path):
    image = read_image(save(RAMP, tmp_path / "a.png"))
    assert image.dtype == np.uint8 and image.flags.owndata
    np.testing.assert_array_equal(image, RAMP)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "LA", "RGBA"])
def test_common_modes_become_rgb(tmp_path: Path, mode: str):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    options = {"quality": 100, "subsampling": 0} if mode == "CMYK" else {}
    white = np.full((8, 8, 3), 255, np.uint8)
    image = read_image(save(white, path, mode, **options))
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8
    np.testing.assert_allclose(image, 255, atol=2)


def test_transparent_parts_are_white(tmp_path: Path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = [0, 255, 128]
    np.testing.assert_array_equal(
        read_image(save(rgba, tmp_path / "a.png"))[0, :, 0], [255, 0, 127]
    )
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "p.png")[0], [[255] * 3, [40, 50, 60]])


def test_16_bit_gray_keeps_its_range(tmp_path: Path):
    gray = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    image = read_image(save(gray, tmp_path / "a.png"))
    np.testing.assert_array_equal(image[0, :, 1], [0, 0, 1, 1, 128, 255])


@pytest.mark.parametrize("orientation", [0, *range(1, 10)])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(RAMP, tmp_path / "a.png", exif=exif)
    with Image.open(path) as opened:
        upright = np.array(ImageOps.exif_transpose(opened))
    np.testing.assert_array_equal(read_image(path), upright)
    counts = save(RAMP[..., 0].astype(np.uint16), tmp_path / "d.png", exif=exif)
    np.testing.assert_array_equal(read_depth(counts, DepthFormat(1.0))[0], upright[..., 0])


def test_long_text_in_a_png_is_read_and_a_bomb_is_named(tmp_path: Path):
    about = PngImagePlugin.PngInfo()
    about.add_text("workflow", "x" * 1_600_000, zip=True)
    about.add_itxt("more", "y" * 1_600_000, zip=True)
    path = save(RAMP, tmp_path / "a.png", pnginfo=about)
    np.testing.assert_array_equal(read_image(path), RAMP)
    about.add_text("bomb", "x" * (files.MAX_TEXT_BYTES + 1), zip=True)
    with pytest.raises(UserError, match="its text unpacks to more than 64 MB") as caught:
        read_image(save(RAMP, path, pnginfo=about))
    one_line(caught, path)


def test_large_photographs_do_not_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = save(RAMP, tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path).shape == RAMP.shape
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(UserError, match="more pixels") as caught:
        read_image(path)
    one_line(caught, path)


@pytest.mark.parametrize("read", [read_image, lambda path: read_depth(path, DepthFormat(1.0))])
@pytest.mark.parametrize(
    "content", [None, b"", b"not a picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", "folder"]
)
def test_missing_and_foreign_files(tmp_path: Path, read, content):
    path = tmp_path / "a.png"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    one_line(caught, path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_images(tmp_path: Path, kind: str):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(UserError) as caught:
        read_image(path)
    one_line(caught, path)


def test_float_images_are_refused(tmp_path: Path):
    path = save(np.ones((2, 2), np.float32), tmp_path / "a.tiff")
    with pytest.raises(UserError, match="floats"):
        read_image(path)


def test_counts_times_scale(tmp_path: Path):
    path = save(np.array([[0, 1, 5000], [65535, 2, 0]], np.uint16), tmp_path / "a.png")
    depth, valid = read_depth(path, DepthFormat(0.001))
    assert depth.dtype == np.float32 and valid.dtype == np.bool_
    np.testing.assert_array_equal(valid, [[False, True, True], [True, True, False]])
    np.testing.assert_allclose(depth, [[0, 0.001, 5], [65.535, 0.002, 0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.uint16, np.int32])
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1)])
def test_arrays_of_any_number_type(tmp_path: Path, dtype, shape):
    np.save(tmp_path / "a.npy", np.array([[0, 1, 2], [3, 4, 5]], dtype).reshape(shape))
    depth, valid = read_depth(tmp_path / "a.npy", DepthFormat())
    np.testing.assert_array_equal(depth, [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(valid, [[False, True, True], [True, True, True]])
    is_float = np.dtype(dtype).kind == "f"
    scaled, _ = read_depth(tmp_path / "a.npy", DepthFormat(0.5))
    np.testing.assert_array_equal(scaled[1], [3, 4, 5] if is_float else [1.5, 2, 2.5])
    assert files.holds_floats(tmp_path / "a.npy") == is_float


@settings(deadline=None)
@given(arrays(np.float64, (3, 4), elements=st.floats(min_value=0) | st.just(float("nan"))))
def test_valid_is_exactly_finite_and_positive(tmp_path_factory, stored: np.ndarray):
    path = tmp_path_factory.getbasetemp() / "depth.npy"
    np.save(path, stored)
    with np.errstate(over="ignore", under="ignore"):
        expected = np.isfinite(stored.astype(np.float32)) & (stored.astype(np.float32) > 0)
    if not expected.any():
        with pytest.raises(UserError, match="no valid depth"):
            read_depth(path, DepthFormat())
        return
    depth, valid = read_depth(path, DepthFormat())
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(depth[valid], stored[expected].astype(np.float32))
    assert not depth[~valid].any()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_image_is_not_depth(tmp_path: Path, mode: str):
    path = save(np.full((4, 4, 3), 200, np.uint8), tmp_path / "a.png", mode)
    with pytest.raises(UserError, match=r"not 16-bit depth; save depth as a 16-bit") as caught:
        read_depth(path, DepthFormat(0.001))
    one_line(caught, path)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (np.array([[1.0, -0.5]]), "negative values \\(down to -0.5\\)"),
        (np.array([[1.0, -np.inf]]), "negative"),
        (np.array([[0.0, np.nan, np.inf]]), "no valid depth"),
        (np.ones((2, 2, 3)), "shape \\(2, 2, 3\\)"),
        (np.ones(4), "shape"),
        (np.ones((0, 4)), "shape"),
        (np.ones((2, 2), np.bool_), "holds bool"),
        (np.ones((2, 2), np.complex64), "holds complex64"),
        (np.array([["far"]]), "not numbers"),
        (np.array([[Evil()]], object), "of numbers"),
    ],
)
def test_wrong_arrays(tmp_path: Path, stored: np.ndarray, reason: str):
    np.save(tmp_path / "a.npy", stored)
    with pytest.raises(UserError, match=reason) as caught:
        read_depth(tmp_path / "a.npy", DepthFormat())
    one_line(caught, tmp_path / "a.npy")


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        *(None, b"", b"\x93NUMPY", b"PK\x03\x04", b"\x80\x04K\x01."),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4,\n"),
        npy_header("{b'descr': '<f4', 'fortran_order': False, 'shape': (4, 4)}\n"),
    ],
)
def test_files_that_are_not_arrays(tmp_path: Path, content: bytes | None):
    path = tmp_path / "a.npy"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_depth(path, DepthFormat())
    one_line(caught, path)


def test_truncated_array(tmp_path: Path):
    path = tmp_path / "a.npy"
    np.save(path, np.ones((8, 8)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="of numbers"):
        read_depth(path, DepthFormat())


def test_sentinel_and_maximum_are_excluded(tmp_path: Path):
    stored = np.array([[65535, 2000, 80_000 % 65536]], np.uint16)
    path = save(stored, tmp_path / "a.png")
    for form in (DepthFormat(0.001, invalid=65535), DepthFormat(0.001, max_depth=20)):
        depth, valid = read_depth(path, form)
        np.testing.assert_array_equal(valid, [[False, True, True]])
        np.testing.assert_allclose(depth, [[0, 2, 14.464]], rtol=1e-6)
    np.save(tmp_path / "a.npy", np.array([[-1, 0.1, 2]], np.float32))
    depth, valid = read_depth(tmp_path / "a.npy", DepthFormat(invalid=-1))
    np.testing.assert_array_equal(valid, [[False, True, True]])
    with pytest.raises(UserError, match=r"no valid depth \(all is 0, NaN, excluded or inf"):
        read_depth(path, DepthFormat(0.001, max_depth=0.5))
    with pytest.raises(UserError, match="maximum of depth is -1"):
        DepthFormat(max_depth=-1)


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf"), "0.001", True])
def test_wrong_scales(tmp_path: Path, scale):
    with pytest.raises(UserError, match="positive number"):
        files.check_scale(scale)
    if not isinstance(scale, str):
        with pytest.raises(UserError, match="positive number"):
            DepthFormat(scale)


def test_png_of_this_package_states_its_scale(tmp_path: Path):
    depth = np.random.default_rng(0).uniform(1, 9, (5, 7)).astype(np.float32)
    images.save_depth(tmp_path / "depth", depth)
    read, valid = read_depth(tmp_path / "depth.png", DepthFormat())
    assert valid.all() and np.abs(read - depth).max() < 1e-4
    given, _ = read_depth(tmp_path / "depth.png", DepthFormat(scale=0.001))
    assert given.max() == pytest.approx(65.535)
    for odd in ("0", "nan", "x"):
        text = PngImagePlugin.PngInfo()
        text.add_text("scale", odd), text.add_text("unit", "meters")
        Image.fromarray(np.ones((2, 2), np.uint16)).save(tmp_path / "odd.png", pnginfo=text)
        with pytest.raises(UserError, match="the unit of its counts is not known"):
            read_depth(tmp_path / "odd.png", DepthFormat())


def test_counts_need_a_scale_and_a_known_kind(tmp_path: Path):
    with pytest.raises(UserError, match=r"unit of its counts is not known; state the depth scale"):
        read_depth(save(np.ones((2, 2), np.uint16), tmp_path / "a.png"), DepthFormat())
    with pytest.raises(UserError, match=r"\.tif file is not understood"):
        read_depth(tmp_path / "a.tif", DepthFormat())


def test_16_bit_modes_are_those_of_pillow():
    buffer = io.BytesIO()
    Image.fromarray(np.ones((2, 2), np.uint16)).save(buffer, "PNG")
    assert Image.open(buffer).mode in files.MODES_16_BIT
