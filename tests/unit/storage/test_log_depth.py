"""Log-depth PNGs: decoding inverts encoding to half a code; errors name the file."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from modality_forcing.errors import UserError
from modality_forcing.storage.log_depth import decode, read_log_depth
from tests import layouts
from tests.log_depth import encode, write_log_depth


@given(st.floats(1e-3, 1e3), st.floats(1.0, 1e6), st.integers(0, 2**32 - 1))
def test_error_is_at_most_half_a_code(near, ratio, seed):
    far = near * ratio
    depth = near * ratio ** np.random.default_rng(seed).random((5, 7))
    depth = np.clip(depth, near, far).astype(np.float32)
    depth[0, :2] = np.nan, np.inf
    again = decode(encode(depth, near, far), near, far)
    known = np.isfinite(depth)
    error = np.abs(np.log(again[known].astype(np.float64) / depth[known]))
    assert error.max() <= math.log(ratio) / (2 * 65533) + 3e-7  # half a code and float32
    assert np.isnan(again[0, 0]) and again[0, 1] == np.inf


def test_codes_encode_to_themselves():
    codes = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    depth = decode(codes, 0.5, 80.0)
    u = (codes.astype(np.float64) - 1) / 65533
    np.testing.assert_allclose(
        depth.ravel()[1:-1], (0.5 ** (1 - u) * 80.0**u).ravel()[1:-1], rtol=2e-7
    )
    assert np.isnan(depth[0, 0]) and depth[-1, -1] == np.inf
    np.testing.assert_array_equal(encode(depth, 0.5, 80.0), codes)


def test_files_keep_sky_unknown_and_unit(tmp_path):
    depth = np.array([[1.0, 2.5, np.nan], [np.inf, 30.0, 7.0]], np.float32)
    write_log_depth(tmp_path / "d.png", depth)
    again, unit = read_log_depth(tmp_path / "d.png")
    np.testing.assert_allclose(again, depth, rtol=3e-5)
    assert unit is None
    save(tmp_path / "u.png", near="1", far="1", unit="0.5")
    again, unit = read_log_depth(tmp_path / "u.png")
    assert unit == 0.5 and np.all(again == 1)


def save(path, codes=None, **chunks):
    info = PngImagePlugin.PngInfo()
    for name, text in chunks.items():
        info.add_text(name, text)
    Image.fromarray(np.ones((2, 2), np.uint16) if codes is None else codes).save(
        path, "PNG", pnginfo=info
    )


@pytest.mark.parametrize(
    "chunks, message",
    [
        ({"near": "1"}, "no text chunk far"),
        ({}, "near and far"),
        ({"near": "0", "far": "1"}, "not a positive number"),
        ({"near": "x", "far": "1"}, "not a positive number"),
        ({"near": "2", "far": "1"}, "far must not be below near"),
    ],
)
def test_invalid_text_chunks(tmp_path, chunks, message):
    save(tmp_path / "d.png", **chunks)
    with pytest.raises(UserError, match=message):
        read_log_depth(tmp_path / "d.png")


def test_other_files(tmp_path):
    save(tmp_path / "eight.png", np.ones((2, 2), np.uint8), near="1", far="2")
    with pytest.raises(UserError, match="16-bit"):
        read_log_depth(tmp_path / "eight.png")
    save(tmp_path / "turned.png", np.ones((2, 2), np.uint16), near="1", far="2")
    layouts.tag(tmp_path / "turned.png", 3, turned=False)
    with pytest.raises(UserError, match="EXIF orientation is 3"):
        read_log_depth(tmp_path / "turned.png")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_log_depth(tmp_path / "cut.png")
    with pytest.raises(UserError, match="no such file"):
        read_log_depth(tmp_path / "none.png")


def test_depth_outside_the_range_is_not_encoded():
    for depth in (3.0, 0.5, -np.inf):
        with pytest.raises(ValueError):
            encode(np.full((1, 1), depth, np.float32), 1.0, 2.0)
