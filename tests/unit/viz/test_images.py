"""What is drawn and written of depth can be read back, within the stated error, or is not there at all."""

from __future__ import annotations

import json
import os

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image

from modality_forcing.errors import UserError
from modality_forcing.viz import images
from modality_forcing.viz.images import (
    UNKNOWN,
    captioned,
    disparity_colours,
    disparity_limits,
    grid,
    load_depth_png,
    png_bytes,
    save_depth,
    to_u8,
    upscale,
    value_colours,
)

maps = hnp.arrays(np.float32, (4, 5), elements=st.floats(2.0**-10, 2.0**20, width=32))


def ramp(height=8, width=50):
    return np.tile(1 / np.linspace(0.1, 2, width, dtype="f4"), (height, 1))


def luminance(colours):
    return colours.astype(float) @ [0.2126, 0.7152, 0.0722]


def test_near_is_brighter_than_far_all_along():
    light = luminance(disparity_colours(ramp()))[0]
    assert np.all(np.diff(light) >= 0)
    assert light[-1] - light[0] > 150


def test_no_colour_of_the_map_looks_unknown():
    assert np.abs(images._COLOURS.astype(int) - UNKNOWN).max(axis=1).min() > 25


def test_unknown_pixels_are_gray_and_do_not_shift_the_colours():
    depth = ramp()
    valid = np.ones_like(depth, bool)
    valid[:2] = False
    plain = disparity_colours(depth, valid)
    assert np.all(plain[:2] == UNKNOWN)
    assert not np.any(np.all(plain[2:] == UNKNOWN, axis=-1))
    depth[:2] = [[np.nan], [1e9]]
    np.testing.assert_array_equal(disparity_colours(depth, valid), plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_depth_that_cannot_be_is_unknown_without_a_mask(bad):
    depth = ramp()
    depth[3, 4] = bad
    assert np.argwhere(np.all(disparity_colours(depth) == UNKNOWN, axis=-1)).tolist() == [[3, 4]]


@settings(deadline=None)
@given(maps, st.sampled_from([0.25, 4.0, 1024.0]))
def test_colours_do_not_depend_on_the_unit(depth, unit):
    far, near = disparity_limits(depth)
    if near - far > 1e-6 * near:
        difference = disparity_colours(depth).astype(int) - disparity_colours(
            depth * np.float32(unit)
        )
        assert (
            np.abs(difference).max() <= 8
        )  # one step of the map, where rounding falls the other way


def test_outliers_do_not_take_the_range_and_shared_limits_make_maps_comparable():
    depth = ramp(20)
    speck = depth.copy()
    speck[0, 0] = 1e-4
    step = np.abs(disparity_colours(speck).astype(int) - disparity_colours(depth))[1:]
    assert np.median(step) <= 8
    assert step.max() < 50  # against over 200 if the speck were taken for the near end
    limits = disparity_limits(depth)
    half = disparity_colours(depth[:, :25], limits=limits)
    np.testing.assert_array_equal(half, disparity_colours(depth)[:, :25])


@pytest.mark.parametrize(
    "depth, valid", [(np.full((2, 2), 3.0, "f4"), None), (np.ones((2, 2)), np.zeros((2, 2), bool))]
)
def test_one_depth_and_no_depth_have_a_colour(depth, valid):
    colours = disparity_colours(depth, valid)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 1
    assert np.all(colours == UNKNOWN) == (valid is not None)


def test_upscale_repeats_pixels():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = upscale(image, 3)
    assert large.shape == (6, 6, 3)
    np.testing.assert_array_equal(large[1::3, 1::3], image)
    np.testing.assert_array_equal(large[2::3, ::3], image)


def test_grid_puts_each_picture_in_its_place():
    a, b, c = (np.full((5, 7, 3), value, np.uint8) for value in (50, 100, 200))
    sheet = grid([[a, b], [None, c]], pad=2)
    assert sheet.shape == (2 * (5 + 2) + 2, 2 * (7 + 2) + 2, 3)
    np.testing.assert_array_equal(sheet[2:7, 2:9], a)
    np.testing.assert_array_equal(sheet[2:7, 11:18], b)
    np.testing.assert_array_equal(sheet[9:14, 11:18], c)
    assert np.all(sheet[9:14, 2:9] == sheet[0, 0])


def test_labels_stand_above_their_columns_and_move_nothing_else():
    cells = [[np.full((20, 90, 3), 50, np.uint8)] * 2]
    plain, labelled = grid(cells), grid(cells, labels=["picture", ""])
    head = len(labelled) - len(plain)
    np.testing.assert_array_equal(labelled[head:], plain)
    inked = np.any(labelled[:head] != labelled[0, 0], axis=(0, 2))
    assert inked[:94].any()
    assert not inked[94:].any()


@pytest.mark.parametrize(
    "rows", [[], [[None]], [[np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)]]]
)
def test_grid_refuses_what_has_no_common_size(rows):
    with pytest.raises(ValueError, match="one size"):
        grid(rows)


def test_png_bytes_round_trip(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    (tmp_path / "a.png").write_bytes(png_bytes(image))
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), image)


@settings(max_examples=50, deadline=None)
@given(maps, hnp.arrays(bool, (4, 5)))
def test_depth_png_is_within_half_a_scale_and_keeps_the_mask(tmp_path_factory, depth, valid):
    folder = tmp_path_factory.mktemp("depth")
    save_depth(folder / "d", depth, valid)
    loaded, known, scale = load_depth_png(folder / "d.png")
    np.testing.assert_array_equal(known, valid)
    assert np.all(loaded[~known] == 0)
    error = np.abs(loaded - depth.astype(np.float64))[known]
    rounding = 1e-6 * depth[known]
    assert np.all(error <= np.where(depth[known] < scale / 2, scale, scale / 2) + rounding)
    if known.any():
        assert scale == pytest.approx(depth[known].max() / 65535)


def test_every_depth_file_says_the_same(tmp_path):
    depth = ramp()
    depth[0, 0], depth[1, 1] = np.nan, -2
    paths = save_depth(tmp_path / "new" / "my.depth", depth, unit="metre")
    assert [path.name for path in paths] == [
        "my.depth.npy",
        "my.depth.png",
        "my.depth.json",
        "my.depth_colour.png",
    ]
    assert sorted(os.listdir(tmp_path / "new")) == sorted(path.name for path in paths)
    array = np.load(paths[0], allow_pickle=False)
    assert array.dtype == np.float32
    assert np.isnan(array[0, 0]) and np.isnan(array[1, 1]) and np.isnan(array).sum() == 2
    loaded, known, scale = load_depth_png(paths[1])
    np.testing.assert_array_equal(known, ~np.isnan(array))
    assert json.loads(paths[2].read_text()) == {"scale": scale, "unit": "metre", "invalid": 0}
    with Image.open(paths[1]) as opened:
        assert opened.info["unit"] == "metre"
        assert opened.mode.startswith("I")
    np.testing.assert_array_equal(np.asarray(Image.open(paths[3])), disparity_colours(depth))
    np.testing.assert_allclose(loaded[known], array[known], atol=scale / 2 * 1.01)


def test_a_map_with_nothing_known_is_written_all_the_same(tmp_path):
    save_depth(tmp_path / "d", np.full((3, 3), np.nan, "f4"))
    loaded, known, scale = load_depth_png(tmp_path / "d.png")
    assert not known.any()
    assert not loaded.any()
    assert scale == 1


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_depth(tmp_path / "a" / "d", ramp())


def test_pictures_round_to_bytes():
    told = to_u8(np.array([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 2.0]))
    assert told.dtype == np.uint8 and told.tolist() == [0, 0, 0, 1, 255, 255]


def test_values_have_colours_between_their_limits_and_gray_where_they_are_none():
    values = np.array([[0.0, 0.5, 1.0, 7.0, np.nan]])
    known = np.array([[True, True, True, True, False]])
    colours = value_colours(values, known, (0.0, 1.0))
    assert colours[0, 4].tolist() == list(UNKNOWN)
    assert colours[0, 2].tolist() == colours[0, 3].tolist() != colours[0, 0].tolist()
    lightness = colours[0, :3].astype(int).sum(axis=1)
    assert lightness[0] < lightness[1] < lightness[2]


def test_a_caption_lies_over_the_lower_edge_and_the_rest_is_left_alone():
    image = np.full((64, 96, 3), 200, np.uint8)
    told = captioned(image, "best 3: AbsRel 0.051")
    np.testing.assert_array_equal(told[:46], image[:46])
    assert (told[48:] != 200).any() and len(np.unique(told[48:])) > 3 and (image == 200).all()
