"""Decoding inverts encoding: exact for masks and sparse depth, to 0.01% for surfaces."""

from __future__ import annotations

import io
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modality_forcing.data.records import Record, check
from modality_forcing.storage import codec, tf_example

PRECISION = codec.STEP / 2 + 2e-7  # half a step, and the rounding of float32


def record(
    size: tuple[int, int] = (12, 17), share: float = 1.0, ratio: float = 50.0, seed: int = 0
) -> Record:
    rng = np.random.default_rng(seed)
    valid = np.zeros(size, np.bool_)
    valid.flat[rng.permutation(valid.size)[: round(share * valid.size)]] = True
    depth = np.exp(rng.uniform(0, np.log(ratio), size)).astype(np.float32)
    smooth = (
        np.add.outer(np.arange(size[0]), np.arange(size[1]))[..., None] * np.array([5, 3, 2]) % 200
    )
    return Record(
        image=smooth.astype(np.uint8),
        depth=np.where(valid, depth, np.float32(np.nan)),
        valid=valid,
        intrinsics=np.array([[200.5, 0, 8], [0, 201, 6], [0, 0, 1]], np.float32),
        unit="metric",
        caption="ein Baum, 木",
        source="somewhere",
        id="a/b_1",
    )


def coding(content: bytes) -> bytes | float | int:
    return tf_example.decode(content)["coding"][0]


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    share=st.floats(0, 1),
    ratio=st.floats(1, 1e7),
    seed=st.integers(0, 99),
)
def test_decode_inverts_encode(size: tuple[int, int], share: float, ratio: float, seed: int):
    before = record(size, share, ratio, seed)
    after = check(codec.decode(codec.encode(before, "png")))
    np.testing.assert_array_equal(after.image, before.image)
    np.testing.assert_array_equal(after.valid, before.valid)
    np.testing.assert_array_equal(after.intrinsics, before.intrinsics)
    assert np.all(after.depth[~after.valid] == 0)
    error = np.abs(after.depth[after.valid] / before.depth[after.valid] - 1)
    assert not error.size or error.max() <= PRECISION
    if before.valid.mean() <= codec.SPARSE:
        assert not error.any()
    names = ("unit", "caption", "source", "id")
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]


@pytest.mark.parametrize(
    ("share", "ratio", "expected"),
    [
        (0, 50, b"none"),
        (0.1, 50, b"floats"),
        (0.2, 50, b"floats"),
        (0.21, 50, b"log"),
        (1, 4e5, b"log"),
        (1, 1e6, b"floats"),
    ],
)
def test_coding_of_depth(share: float, ratio: float, expected: bytes):
    before = record((10, 10), share, ratio)
    if share == 1:
        before.depth.flat[:2] = 1, ratio
    assert coding(codec.encode(before)) == expected


@pytest.mark.parametrize("ends", [(1e-41, 2e-41), (1e38, 3.4e38), (1e-31, 1e-30)])
def test_extreme_depth_is_exact(ends: tuple[float, float]):
    before = record()
    before.depth[:] = ends[0]
    before.depth[0] = ends[1]
    np.testing.assert_array_equal(codec.decode(codec.encode(before)).depth, before.depth)


def test_surfaces_take_less_than_floats():
    before = record((64, 64))
    before.depth[:] = 2 + np.sin(np.arange(64) / 9)
    dense = len(codec.encode(before)) - len(
        codec.encode(replace(before, valid=np.zeros_like(before.valid)))
    )
    assert dense < 0.4 * 4 * 64 * 64


@pytest.mark.parametrize(("image_format", "most"), [("jpeg", 4), ("webp", 8), ("png", 0)])
def test_image_formats(image_format: codec.ImageFormat, most: int):
    before = record((40, 30))
    before.image[:] = np.linspace(0, 255, 30)[None, :, None]
    content = codec.encode(before, image_format)
    stored = tf_example.decode(content)["image"][0]
    assert isinstance(stored, bytes)
    assert Image.open(io.BytesIO(stored)).format == image_format.upper()
    after = codec.decode(content).image
    assert np.abs(after.astype(int) - before.image).max() <= most


def test_jpeg_has_full_color_resolution():
    """Red and blue columns: a JPEG with colors at half resolution would mix them."""
    before = record((32, 32))
    before.image[:] = np.where(np.arange(32)[:, None] % 2, [200, 40, 40], [40, 40, 200])
    after = codec.decode(codec.encode(before)).image.astype(int)
    assert np.abs(after - before.image).max() < 20


def test_missing_intrinsics_stay_nan():
    nan = np.full((3, 3), np.nan, np.float32)
    assert np.isnan(codec.decode(codec.encode(replace(record(), intrinsics=nan))).intrinsics).all()


def test_bytes_are_deterministic():
    assert codec.encode(record()) == codec.encode(record())


def changed(**features) -> bytes:
    stored: dict = dict(tf_example.decode(codec.encode(record(share=0.1))))
    stored.update(features)
    return tf_example.encode({name: value for name, value in stored.items() if value is not None})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        codec.encode(record())[:-9],
        changed(image=None),
        changed(image=[b"\xff\xd8junk"]),
        changed(size=[12, 18]),
        changed(size=[2**40, 2**40]),
        changed(size=[-1, 17]),
        changed(size=[12]),
        changed(depth=[b"junk"]),
        changed(depth=[b""]),
        changed(coding=[b"other"]),
        changed(coding=[b"log"]),
        changed(unit=[b"feet"]),
        changed(unit=[1]),
        changed(caption=[b"\xff"]),
        changed(intrinsics=[1.0]),
        changed(intrinsics=[b"x"] * 9),
        changed(depth=[zlib.compress(np.zeros(20, "<f4").tobytes())]),
        changed(depth=[zlib.compress(np.full(20, np.nan, "<f4").tobytes())]),
        changed(depth=[zlib.compress(np.ones(19, "<f4").tobytes())]),
        changed(depth=[zlib.compress(np.ones(1, "<f4").tobytes())]),
    ],
)
def test_other_bytes_are_a_value_error(content: bytes):
    with pytest.raises(ValueError, match="not a prepared example"):
        codec.decode(content)


@pytest.mark.parametrize(("quality", "side"), [(95, 64), (70, 61), (100, 8)])
def test_jpeg_pixels_equal_pillow(quality: int, side: int):
    image = np.random.default_rng(side).integers(0, 256, (side, side + 7, 3), np.uint8)
    content = codec._encode_image(image, "jpeg", quality)
    with Image.open(io.BytesIO(content)) as opened:
        np.testing.assert_array_equal(
            codec._decode_image(content, image.shape[:2]), np.asarray(opened)
        )
    for damaged in (content[: len(content) // 2], content[:20], b"\xff\xd8" + content[40:]):
        with pytest.raises(ValueError):
            codec._decode_image(damaged, image.shape[:2])
    with pytest.raises(ValueError, match="image"):
        codec._decode_image(content, (side, side))


def test_all_captions_are_stored():
    one, several = record(), replace(record(), other_captions=("zwei", ""))
    assert "other_captions" not in tf_example.decode(codec.encode(one))
    content = codec.encode(several)
    assert codec.decode(content).other_captions == ("zwei", "")
    assert codec.captions(content) == (several.caption, "zwei", "")
