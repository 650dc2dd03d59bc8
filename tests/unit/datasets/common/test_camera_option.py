"""The camera that a user states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modality_forcing.data.intrinsics import pinhole
from modality_forcing.datasets.common.camera_option import parse_camera, vga_intrinsics
from modality_forcing.errors import UserError

K = pinhole(535.4, 539.2, 320.1, 247.6)
IMAGE = Path("a.png")


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
