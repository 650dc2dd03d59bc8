"""Intrinsics that fit their image: rescaled, refused, or stated by the user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.datasets.common.intrinsics import (
    check_principal_point,
    parse_camera,
    pinhole,
    rescale_intrinsics,
    vga_intrinsics,
)
from modality_forcing.errors import UserError

K = pinhole(535.4, 539.2, 320.1, 247.6)
IMAGE = Path("a.png")


@given(width=st.integers(16, 2000))
@settings(max_examples=50, deadline=None)
def test_points_at_the_edges_stay_at_the_edges(width: int):
    height = round(width * 0.75)
    scaled = rescale_intrinsics(K, (480, 640), (height, width, 3), IMAGE)
    # Edges of the image are half a pixel beyond the centers of its pixels.
    edges = np.array([[-0.5, -0.5, 1], [639.5, 479.5, 1]]).T
    ours = np.array([[-0.5, -0.5, 1], [width - 0.5, height - 0.5, 1]]).T
    np.testing.assert_allclose(
        np.linalg.solve(scaled, ours), np.linalg.solve(K, edges), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("shape", [(480, 480), (360, 640), (0, 0), (240, 318)])
def test_crops_have_no_known_camera(shape: tuple[int, int]):
    with pytest.raises(UserError, match=r"a\.png: is .* pixels, not 640 x 480 or a rescaled copy"):
        rescale_intrinsics(K, (480, 640), shape, IMAGE)


def test_camera_of_the_same_size_is_unchanged():
    assert rescale_intrinsics(K, (480, 640), (480, 640, 3), IMAGE) is K
    assert check_principal_point(K, (480, 640), IMAGE) is K


@pytest.mark.parametrize("scale", [0.25, 0.5, 0.7, 1.7, 2, 4])
def test_principal_point_shows_another_size(scale: float):
    shape = (round(480 * scale), round(640 * scale))
    with pytest.raises(
        UserError, match=r"but k\.txt has its principal point at \(320\.1, 247\.6\)"
    ):
        check_principal_point(K, shape, IMAGE, "k.txt")


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,x", "0,1,2,3", "1,1,nan,2", "1,1,2,3,4"])
def test_camera_option_is_four_numbers(text: str):
    with pytest.raises(UserError, match="write FX,FY,CX,CY in pixels of the images"):
        parse_camera(text)


def test_stated_camera_replaces_the_known_one():
    option = parse_camera("500, 501,310,230.5")
    stated = vga_intrinsics(K, option, (480, 640), IMAGE, hint="")
    np.testing.assert_array_equal(stated, pinhole(500, 501, 310, 230.5))
    half = vga_intrinsics(K, None, (240, 320), IMAGE, hint="")
    np.testing.assert_allclose(half[:2], [[267.7, 0, 159.8], [0, 269.6, 123.55]])
    with pytest.raises(UserError, match="its camera is not known; look, or state it: --option"):
        vga_intrinsics(None, None, (480, 640), IMAGE, hint="look")
