"""What the pipeline takes: paths, PIL images, arrays, one or many."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.inference.inputs import (
    as_captions,
    as_depth,
    as_image,
    as_list,
    as_number,
    as_size,
    as_texts,
    as_whole,
)

RGB = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)


def test_images_of_every_kind_are_the_same(tmp_path: Path):
    Image.fromarray(RGB).save(tmp_path / "photo.png")
    for image in (RGB, Image.fromarray(RGB), tmp_path / "photo.png", str(tmp_path / "photo.png")):
        np.testing.assert_array_equal(as_image(image), RGB)
    turned = Image.fromarray(RGB)
    turned.getexif()[0x0112] = 6
    assert as_image(turned).shape == (4, 2, 3)
    transparent = Image.fromarray(np.zeros((2, 2, 4), np.uint8), "RGBA")
    assert (as_image(transparent) == 255).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((2, 4, 3), np.float32), r"an image is u8 \[h w 3\], not float32 \[2, 4, 3\]"),
        (np.zeros((2, 4), np.float32), "scale colors to 0 to 255"),
        (np.zeros((3, 8, 6), np.uint8), r"not uint8 \[3, 8, 6\]; channels come last"),
        (np.zeros((0, 4, 3), np.uint8), "it has no pixels"),
        (np.zeros((2, 4, 2), np.uint8), "give 1, 3 or 4 channels"),
        (np.zeros(4, np.uint8), "give one image"),
        (b"GIF89a", "bytes is no image"),
        ("no-such.jpg", "no-such.jpg: no such file"),
    ],
)
def test_wrong_images_are_one_line(image, message: str):
    with pytest.raises(UserError, match=message):
        as_image(image)


def test_arrays_of_jax_gray_and_transparent_are_images():
    np.testing.assert_array_equal(as_image(jnp.asarray(RGB)), RGB)
    each, is_list = as_list(jnp.asarray([RGB, RGB]))
    assert is_list and len(each) == 2 and as_list(np.str_("a.png")) == (["a.png"], False)
    gray = RGB[..., 0]
    for one in (gray, gray[..., None]):
        np.testing.assert_array_equal(as_image(one), np.repeat(gray[..., None], 3, axis=2))
    half = np.concatenate([0 * RGB, np.full((2, 4, 1), 51, np.uint8)], axis=2)
    np.testing.assert_array_equal(as_image(half), np.full((2, 4, 3), 204))  # on white, as files
    np.testing.assert_array_equal(as_depth(jnp.asarray([[0.0, 2.0]]))[0], [[0, 2]])


def test_what_cannot_be_decoded_is_one_line():
    file = BytesIO()
    Image.fromarray(RGB).resize((64, 64)).save(file, "JPEG")
    cut = Image.open(BytesIO(file.getvalue()[:-60]))
    with pytest.raises(UserError, match=r"the image: cannot be decoded .*truncated"):
        as_image(cut)
    deleted = jnp.ones((2, 2)) + 1
    deleted.delete()
    with pytest.raises(UserError, match=r"cannot be read as an array .*deleted"):
        as_depth(deleted)


def test_depth_knows_what_is_unknown(tmp_path: Path):
    stored = np.array([[0, 1], [np.nan, np.inf]], np.float32)
    np.save(tmp_path / "depth.npy", stored)
    for one in (stored, tmp_path / "depth.npy"):
        depth, valid = as_depth(one)
        np.testing.assert_array_equal(valid, [[False, True], [False, False]])
        np.testing.assert_array_equal(depth, [[0, 1], [0, 0]])
    masked = np.ma.masked_array([[5.0, 1.0]], [[True, False]])
    (listed,), _ = as_list(masked)
    for one in (masked, listed, np.array([[1e300, 1.0]])):
        np.testing.assert_array_equal(as_depth(one)[0], [[0, 1]])
    for wrong, message in (
        (-stored, "negative values; mark unknown pixels by 0"),
        (np.zeros((2, 2)), "nowhere valid"),
        (np.zeros(4), r"depth is f32 \[h w\], not float64 \[4\]"),
        (np.zeros((0, 3)), "it has no pixels"),
        ([[1.0]], "list is no depth map"),
        (Image.fromarray(RGB), "Image is no depth map"),
    ):
        with pytest.raises(UserError, match=message):
            as_depth(wrong)


def test_one_or_a_list():
    assert as_list("a") == (["a"], False) and as_list(["a", "b"]) == (["a", "b"], True)
    assert len(as_list(np.stack([RGB, RGB]))[0]) == 2 and not as_list(RGB)[1]
    assert as_captions(None, 2) == ["", ""] and as_captions("a", 2) == ["a", "a"]
    with pytest.raises(UserError, match="1 captions for 2 inputs"):
        as_captions(["a"], 2)
    assert as_texts("a") == (["a"], False) and as_texts(np.array(["a"])) == (["a"], True)
    for wrong in (3, b"a", ["a", None]):
        with pytest.raises(UserError, match=r"a caption is text, not (int|bytes|NoneType)"):
            as_texts(wrong)
    with pytest.raises(UserError, match="int is no input"):
        as_list(3)  # pyright: ignore[reportArgumentType]


def test_numbers_of_any_library():
    assert as_whole("seed", np.int64(3), 0) == 3
    for value, hint in ((-1, "of at least 0$"), (9, "at most 8"), (1.5, "of at least 0$")):
        with pytest.raises(UserError, match=f"seed is {value}; give a whole number .*{hint}"):
            as_whole("seed", value, 0, 8)
    assert as_number("x", 1) == as_number("x", np.float32(1)) == as_number("x", jnp.ones(())) == 1
    for value in ("0.5", None, [1], np.ones(2), np.nan, np.inf, 10**400, -0.1):
        with pytest.raises(UserError, match=r"strength is .*; give a number from 0 to 1"):
            as_number("strength", value, 0, 1)
    with pytest.raises(UserError, match=r"guidance is inf; give a finite number"):
        as_number("guidance", np.inf)
    assert as_size([16, np.int64(32)]) == as_size(np.array([16, 32])) == (16, 32)
    for value in (64, "64", (1, 2, 3), (0, 16), ("a", "b"), None):
        with pytest.raises(UserError, match=r"size is .*; give "):
            as_size(value)
