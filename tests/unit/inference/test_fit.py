"""Placements of photographs on a canvas, and maps back at the photograph's size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.data.resize import Window
from modality_forcing.errors import UserError
from modality_forcing.inference import fit as fits
from modality_forcing.inference.fit import FITS, Placement

SIDES = st.integers(1, 70)
CANVASES = st.sampled_from([(16, 16), (16, 32), (24, 16)])


def test_placements():
    full = Window(0, 0, 16, 16)
    assert fits.place((24, 40), (16, 16), "stretch") == (Placement(Window(0, 0, 24, 40), full),)
    assert fits.place((24, 40), (16, 16), "crop") == (Placement(Window(0, 8, 24, 24), full),)
    boxed = Placement(Window(0, 0, 24, 40), Window(3, 0, 10, 16))
    assert fits.place((24, 40), (16, 16), "letterbox") == (boxed,)
    tiles = [p.window for p in fits.place((24, 40), (16, 16), "tiles")]
    assert tiles == [Window(0, x, 24, 24) for x in (0, 8, 16)]
    assert len(fits.place((20, 30000), (16, 16), "tiles")) == 32
    with pytest.raises(UserError, match="unknown fit 'zoom'; choose one of letterbox, crop"):
        fits.parse_fit("zoom")


@given(SIDES, SIDES, CANVASES, st.sampled_from(FITS))
def test_windows_and_boxes_are_whole_and_inside(height, width, canvas, fit):
    covered = np.zeros((height, width), bool)
    for p in fits.place((height, width), canvas, fit):
        for part, size in ((p.window, (height, width)), (p.box, canvas)):
            assert all(float(x).is_integer() for x in (part.top, part.left))
            assert min(part.top, part.left) >= 0 and min(part.height, part.width) >= 1
            assert part.top + part.height <= size[0] and part.left + part.width <= size[1]
        top, left = int(p.window.top), int(p.window.left)
        covered[top : top + int(p.window.height), left : left + int(p.window.width)] = True
    assert covered.all() or fit == "crop"


@given(SIDES, SIDES, CANVASES, st.sampled_from(FITS))
def test_a_constant_map_comes_back_constant(height, width, canvas, fit):
    fitted = fits.fit_image(np.full((height, width, 3), 7, np.uint8), canvas, fit)
    assert all(x["image"].shape == (*canvas, 3) and (x["image"] == 7).all() for x in fitted.inputs)
    # Tiles are up to scale each: the factors must be undone where they overlap.
    maps = [np.full(canvas, 2.0 + i, np.float32) for i in range(len(fitted.inputs))]
    depth, valid = fits.restore_depth(maps, fitted)
    assert depth.shape == valid.shape == (height, width) and depth.dtype == np.float32
    np.testing.assert_allclose(depth[valid], 2.0, rtol=1e-5)
    assert (depth[~valid] == 0).all() and (valid.all() or fit == "crop")
    images = [np.full((*canvas, 3), 0.5, np.float32) for _ in fitted.inputs]
    image = fits.restore_image(images, fitted)
    assert (image[valid] == 128).all() and image.shape == (height, width, 3)


def test_values_of_the_padding_do_not_enter():
    fitted = fits.fit_image(np.zeros((24, 40, 3), np.uint8), (16, 16), "letterbox")
    values = np.full((16, 16), np.nan, np.float32)
    fitted.placements[0].cut(values)[...] = 3
    depth, valid = fits.restore_depth([values], fitted)
    assert valid.all() and (depth == 3).all()


def test_an_image_lands_in_its_box_with_its_border_repeated():
    image = np.zeros((8, 16, 3), np.uint8)
    image[0], image[-1] = 50, 200
    padded = fits.fit_image(image, (16, 16), "letterbox").inputs[0]["image"]
    np.testing.assert_array_equal(padded[4:12], image)
    assert (padded[:4] == 50).all() and (padded[12:] == 200).all()


def test_padding_and_holes_of_depth_are_unknown():
    depth = np.ones((8, 16), np.float32)
    valid = np.ones((8, 16), bool)
    valid[:, 3] = False
    inputs = fits.fit_depth(depth, valid, (16, 16), "letterbox").inputs[0]
    np.testing.assert_array_equal(inputs["valid"][4:12], valid)
    assert not inputs["valid"][:4].any() and not inputs["valid"][12:].any()
    edges = np.zeros_like(valid)
    edges[:, 0] = True
    with pytest.raises(UserError, match="its center holds no valid depth; use another fit"):
        fits.fit_depth(depth, edges, (16, 16), "crop")


def test_a_ramp_keeps_its_place():
    ramp = np.tile(np.linspace(1, 2, 64, dtype=np.float32), (64, 1))
    fitted = fits.fit_image(np.zeros((64, 64, 3), np.uint8), (16, 16), "letterbox")
    small = ramp.reshape(16, 4, 16, 4).mean((1, 3))
    depth, _ = fits.restore_depth([small], fitted)
    np.testing.assert_allclose(depth[:, 4:-4], ramp[:, 4:-4], atol=1e-5)
