"""Intrinsics that fit their image: rescaled or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.data.intrinsics import check_principal_point, pinhole, rescale_intrinsics
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
