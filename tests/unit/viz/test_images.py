"""Colors, grids and depth files: files round-trip within the stated error."""

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
    INVALID_COLOR,
    add_caption,
    colorize,
    colorize_disparity,
    disparity_limits,
    grid,
    png_bytes,
    save_depth,
    to_u8,
    upscale,
)

maps = hnp.arrays(np.float32, (4, 5), elements=st.floats(2.0**-10, 2.0**20, width=32))


def load_depth_png(path):
    """Depth f32 [h w], valid bool [h w] and the scale of a PNG of `save_depth`."""
    with Image.open(path) as opened:
        codes, scale = np.asarray(opened).astype(np.float64), float(opened.info["scale"])
    return (codes * scale).astype(np.float32), codes > 0, scale


def ramp(height=8, width=50):
    return np.tile(1 / np.linspace(0.1, 2, width, dtype="f4"), (height, 1))


def luminance(colors):
    return colors.astype(float) @ [0.2126, 0.7152, 0.0722]


def test_lightness_rises_from_far_to_near():
    light = luminance(colorize_disparity(ramp()))[0]
    assert np.all(np.diff(light) >= 0)
    assert light[-1] - light[0] > 150


def test_no_color_of_the_map_is_close_to_gray():
    assert (
        np.abs(images._color_table(images.COLORMAP).astype(int) - INVALID_COLOR).max(axis=1).min()
        > 25
    )


def test_invalid_pixels_are_gray_and_do_not_change_the_limits():
    depth = ramp()
    valid = np.ones_like(depth, bool)
    valid[:2] = False
    plain = colorize_disparity(depth, valid)
    assert np.all(plain[:2] == INVALID_COLOR)
    assert not np.any(np.all(plain[2:] == INVALID_COLOR, axis=-1))
    depth[:2] = [[np.nan], [1e9]]
    np.testing.assert_array_equal(colorize_disparity(depth, valid), plain)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_nonpositive_or_nonfinite_depth_is_invalid(bad):
    depth = ramp()
    depth[3, 4] = bad
    assert np.argwhere(np.all(colorize_disparity(depth) == INVALID_COLOR, axis=-1)).tolist() == [
        [3, 4]
    ]


@settings(deadline=None)
@given(maps, st.sampled_from([0.25, 4.0, 1024.0]))
def test_colors_do_not_depend_on_the_unit(depth, unit):
    far, near = disparity_limits(depth)
    if near - far > 1e-6 * near:
        difference = colorize_disparity(depth).astype(int) - colorize_disparity(
            depth * np.float32(unit)
        )
        assert np.abs(difference).max() <= 8  # one step of the color map, by rounding


def test_limits_ignore_outliers_and_can_be_shared():
    depth = ramp(20)
    speck = depth.copy()
    speck[0, 0] = 1e-4
    step = np.abs(colorize_disparity(speck).astype(int) - colorize_disparity(depth))[1:]
    assert np.median(step) <= 8
    assert step.max() < 50  # over 200 if the outlier set the near limit
    limits = disparity_limits(depth)
    half = colorize_disparity(depth[:, :25], limits=limits)
    np.testing.assert_array_equal(half, colorize_disparity(depth)[:, :25])


@pytest.mark.parametrize(
    "depth, valid", [(np.full((2, 2), 3.0, "f4"), None), (np.ones((2, 2)), np.zeros((2, 2), bool))]
)
def test_constant_and_empty_maps_have_one_color(depth, valid):
    colors = colorize_disparity(depth, valid)
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 1
    assert np.all(colors == INVALID_COLOR) == (valid is not None)


def test_upscale_repeats_pixels():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    large = upscale(image, 3)
    assert large.shape == (6, 6, 3)
    np.testing.assert_array_equal(large[1::3, 1::3], image)
    np.testing.assert_array_equal(large[2::3, ::3], image)


def test_grid_places_images_row_by_row():
    a, b, c = (np.full((5, 7, 3), value, np.uint8) for value in (50, 100, 200))
    sheet = grid([[a, b], [None, c]], pad=2)
    assert sheet.shape == (2 * (5 + 2) + 2, 2 * (7 + 2) + 2, 3)
    np.testing.assert_array_equal(sheet[2:7, 2:9], a)
    np.testing.assert_array_equal(sheet[2:7, 11:18], b)
    np.testing.assert_array_equal(sheet[9:14, 11:18], c)
    assert np.all(sheet[9:14, 2:9] == sheet[0, 0])


def test_labels_head_their_columns_and_move_nothing_else():
    cells = [[np.full((20, 90, 3), 50, np.uint8)] * 2]
    plain, labeled = grid(cells), grid(cells, labels=["image", ""])
    head = len(labeled) - len(plain)
    np.testing.assert_array_equal(labeled[head:], plain)
    inked = np.any(labeled[:head] != labeled[0, 0], axis=(0, 2))
    assert inked[:94].any()
    assert not inked[94:].any()


@pytest.mark.parametrize(
    "rows", [[], [[None]], [[np.zeros((2, 2, 3), np.uint8), np.zeros((3, 2, 3), np.uint8)]]]
)
def test_grid_refuses_images_of_different_size(rows):
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


def test_all_depth_files_agree(tmp_path):
    depth = ramp()
    depth[0, 0], depth[1, 1] = np.nan, -2
    paths = save_depth(tmp_path / "new" / "my.depth", depth, unit="meter")
    assert [path.name for path in paths] == [
        "my.depth.npy",
        "my.depth.png",
        "my.depth.json",
        "my.depth_color.png",
    ]
    assert sorted(os.listdir(tmp_path / "new")) == sorted(path.name for path in paths)
    array = np.load(paths[0], allow_pickle=False)
    assert array.dtype == np.float32
    assert np.isnan(array[0, 0]) and np.isnan(array[1, 1]) and np.isnan(array).sum() == 2
    loaded, known, scale = load_depth_png(paths[1])
    np.testing.assert_array_equal(known, ~np.isnan(array))
    assert json.loads(paths[2].read_text()) == {"scale": scale, "unit": "meter", "invalid": 0}
    with Image.open(paths[1]) as opened:
        assert opened.info["unit"] == "meter"
        assert opened.mode.startswith("I")
    np.testing.assert_array_equal(np.asarray(Image.open(paths[3])), colorize_disparity(depth))
    np.testing.assert_allclose(loaded[known], array[known], atol=scale / 2 * 1.01)


def test_map_without_valid_pixels_is_written(tmp_path):
    save_depth(tmp_path / "d", np.full((3, 3), np.nan, "f4"))
    loaded, known, scale = load_depth_png(tmp_path / "d.png")
    assert not known.any()
    assert not loaded.any()
    assert scale == 1


def test_unwritable_folder_is_a_user_error(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_depth(tmp_path / "a" / "d", ramp())


def test_images_round_to_bytes():
    pixels = to_u8(np.array([-1.0, 0.0, 0.4999 / 255, 0.5001 / 255, 1.0, 2.0]))
    assert pixels.dtype == np.uint8 and pixels.tolist() == [0, 0, 0, 1, 255, 255]


def test_colorize_clips_to_limits_and_grays_invalid_values():
    values = np.array([[0.0, 0.5, 1.0, 7.0, np.nan]])
    known = np.array([[True, True, True, True, False]])
    colors = colorize(values, known, (0.0, 1.0))
    assert colors[0, 4].tolist() == list(INVALID_COLOR)
    assert colors[0, 2].tolist() == colors[0, 3].tolist() != colors[0, 0].tolist()
    lightness = colors[0, :3].astype(int).sum(axis=1)
    assert lightness[0] < lightness[1] < lightness[2]


def test_caption_covers_the_lower_edge_only():
    image = np.full((64, 96, 3), 200, np.uint8)
    captioned = add_caption(image, "best 3: AbsRel 0.051")
    np.testing.assert_array_equal(captioned[:46], image[:46])
    assert (
        (captioned[48:] != 200).any()
        and len(np.unique(captioned[48:])) > 3
        and (image == 200).all()
    )


def test_other_colormaps_can_be_chosen():
    reds = colorize_disparity(ramp(), colormap="Spectral_r")
    assert not np.array_equal(reds, colorize_disparity(ramp()))
    near, far = reds[0, -1].astype(int), reds[0, 0].astype(int)
    assert near[0] > near[2] and far[2] > far[0]  # near is red, far is blue


def test_text_cell_wraps_and_cuts_off():
    cell = images.text_cell("word " * 200, 96)
    assert cell.shape == (96, 96, 3) and (cell > 200).any()
