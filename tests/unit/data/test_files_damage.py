"""Damaged image and depth files: every one is a line, or has the pixels that it had."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from modality_forcing.data.files import DepthFormat, read_depth, read_image
from modality_forcing.errors import UserError
from tests import damage


def save(array: np.ndarray, path: Path) -> Path:
    Image.fromarray(array).save(path)
    return path


def sound_files() -> dict[str, bytes]:
    """An image of each kind and maps of depth, with EXIF, color profile and text where possible."""
    exif = Image.Exif()
    exif[0x0112] = 6
    about = PngImagePlugin.PngInfo()
    about.add_itxt("XML:com.adobe.xmp", "<x/>", zip=True)
    image = Image.fromarray(np.arange(64 * 3, dtype=np.uint8).reshape(8, 8, 3))
    gray = Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 200)
    found = {}
    for name, one, kind, options in [
        ("a.png", image, "PNG", {"pnginfo": about, "icc_profile": b"x" * 64}),
        ("d.png", gray, "PNG", {}),
        ("a.jpg", image, "JPEG", {"icc_profile": b"x" * 64}),
        ("a.webp", image, "WEBP", {}),
    ]:
        buffer = io.BytesIO()
        one.save(buffer, kind, exif=exif, **options)
        found[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.ones((8, 8), np.float32))
    return {**found, "d.npy": buffer.getvalue()}


SOUND = sound_files()


@settings(deadline=None, max_examples=150)
@given(
    st.integers(0, 10_000),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
    st.sampled_from([*SOUND]),
)
def test_damage_never_raises_another_error(tmp_path_factory, length, flips, name):
    """Any truncation and any flipped bytes give an image or one line."""
    content = bytearray(SOUND[name])
    for position, value in flips:
        content[position % len(content)] = value
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content[: max(1, length % (2 * len(content)))])
    for read in (read_image, lambda file: read_depth(file, DepthFormat(1.0))):
        try:
            read(path)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.fixture(scope="module")
def pngs(tmp_path_factory) -> dict[Path, bytes]:
    """An image and a depth map, which every example of the fuzz test damages and repairs."""
    folder, rng = tmp_path_factory.mktemp("pngs"), np.random.default_rng(0)
    image = save(rng.integers(0, 256, (6, 7, 3), np.uint8), folder / "image.png")
    depth = save(rng.integers(1, 9000, (12, 12), np.uint16), folder / "depth.png")
    return {path: path.read_bytes() for path in (image, depth)}


def pixels(path: Path) -> np.ndarray:
    form = DepthFormat(scale=0.001)
    return read_image(path) if path.stem == "image" else read_depth(path, form)[0]


@given(st.data())
@damage.examples(100)
def test_damaged_png_is_one_line_or_has_the_same_pixels(pngs: dict[Path, bytes], data):
    path = data.draw(st.sampled_from([*pngs]))
    want = pixels(path)
    path.write_bytes(data.draw(damage.of(pngs[path])))
    try:
        np.testing.assert_array_equal(pixels(path), want)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    finally:
        path.write_bytes(pngs[path])


def test_changed_pixels_of_a_png_are_refused(tmp_path: Path):
    """All bits of the compressed pixels; Pillow alone gives other depth for some of them."""
    rng = np.random.default_rng(0)
    path = save(rng.integers(1, 9000, (12, 12), np.uint16), tmp_path / "a.png")
    content = path.read_bytes()
    start = content.index(b"IDAT") + 4
    for bit in range(8 * start, 8 * (start + int.from_bytes(content[start - 8 : start - 4]))):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.png: cannot be read as a depth map"):
            read_depth(path, DepthFormat(scale=0.001))
