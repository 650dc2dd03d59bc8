"""Color recall: words of captions, colors of images, and true against swapped captions."""

from __future__ import annotations

import colorsys
import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from modality_forcing.evaluation import colors
from modality_forcing.evaluation.colors import COLORS, color_recall, named_colors
from modality_forcing.synthetic.objects import COLORS as PAINTS
from modality_forcing.synthetic.source import Scenes


def speck(rgb, pixels=8, size=32):
    """An image of light gray with a few pixels of a color given in [0, 1]."""
    image = np.full((size * size, 3), 150, np.uint8)
    image[:pixels] = np.rint(255 * np.array(rgb))
    return image.reshape(size, size, 3)


def shows(image, color):
    """Whether the color counts as shown in the image."""
    return color_recall(image[None], [f"a {color} box"])["color_recall"] == 1


def test_sums_do_not_depend_on_the_order_of_a_set(monkeypatch):
    orders = {}
    for step in (1, -1):
        values = orders[step] = []
        named = {"a": ["blue", "green", "red"][::step], "b": ["red"]}
        monkeypatch.setattr(colors, "named_colors", named.get)
        monkeypatch.setattr(colors, "_mean", lambda x, values=values: values.append(x) or 0.0)
        color_recall(np.stack([speck((1, 0, 0)), speck((0, 0, 1))]), ["a", "b"])
    assert orders[1] == orders[-1] == [[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    "caption, named",
    [
        ("a red sphere left of a Blue box outdoors", {"red", "blue"}),
        ("two red cones and a red disc", {"red"}),
        ("a grey egg, a violet prism and a GRAY box", {"gray", "purple"}),
        ("three things indoors", set()),
        ("a covered, reddened, evergreen thing", set()),
        ("", set()),
    ],
)
def test_named_colors(caption, named):
    assert named_colors(caption) == named


def test_all_scene_colors_are_named():
    assert set(PAINTS) <= set(COLORS)
    for name in PAINTS:
        assert named_colors(f"a {name} box") == {name}


@pytest.mark.parametrize("light", [1.0, 0.7, 0.4])
@pytest.mark.parametrize("name", sorted(set(PAINTS) - {"white", "black"}))
def test_saturated_colors_are_recognized_in_light_and_shadow(name, light):
    image = speck(light * np.array(PAINTS[name]))
    seen = {color for color in PAINTS if shows(image, color)}
    assert seen == {name}


@pytest.mark.parametrize(
    "name, rgb",
    [
        ("white", PAINTS["white"]),
        ("black", PAINTS["black"]),
        ("pink", (1.0, 0.6, 0.7)),
        ("brown", (0.45, 0.27, 0.12)),
    ],
)
def test_unsaturated_colors_are_recognized(name, rgb):
    assert shows(speck(rgb), name)
    assert not shows(speck((0.59, 0.59, 0.59)), name)


def test_gray_and_magenta():
    assert shows(speck((1, 0, 0)), "gray")
    assert not shows(np.full((8, 8, 3), (255, 0, 0), np.uint8), "gray")
    assert shows(speck((0.9, 0.1, 0.8)), "magenta")


def test_color_needs_a_minimum_area():
    assert shows(speck(PAINTS["red"], pixels=8), "red")
    assert not shows(speck(PAINTS["red"], pixels=4), "red")
    # The fraction counts, not the number of pixels.
    assert not shows(speck(PAINTS["red"], pixels=8, size=64), "red")


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.uint8, (7, 3)))
def test_hsv_against_the_standard_library(pixels):
    for pixel, *ours in zip(pixels, *colors._to_hsv(pixels), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        assert ours == [pytest.approx(x, abs=1e-3) for x in (360 * hue, saturation, value)]


def test_score_by_hand():
    images = np.stack([speck(PAINTS["red"]), speck(PAINTS["green"]), speck(PAINTS["red"])])
    score = color_recall(images, ["a red box", "a green box and a blue disc", "a red cone"])
    # Shown: red, green, red, but not blue. By chance: red is not in image 1, the only one with
    # other colors, twice; neither green nor blue is in images 0 and 2.
    assert score == {"color_recall": 3 / 4, "chance": 0.0, "words": 4}
    swapped = color_recall(
        images[[1, 0, 1]], ["a red box", "a green box and a blue disc", "a red cone"]
    )
    assert swapped["color_recall"] == 0
    assert swapped["chance"] == pytest.approx((1 + 1 + 1 + 0) / 4)


@pytest.mark.parametrize("captions", [["a box", "two things"], []])
def test_no_color_words_give_nan(captions):
    score = color_recall(np.zeros((len(captions), 4, 4, 3), np.uint8), captions)
    assert math.isnan(score["color_recall"]) and math.isnan(score["chance"])
    assert score["words"] == 0


def test_equal_captions_have_no_chance_level():
    score = color_recall(np.stack([speck(PAINTS["red"])] * 2), ["a red box", "red cones"])
    assert score["color_recall"] == 1
    assert math.isnan(score["chance"])


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(5)))
def test_score_does_not_depend_on_order(order):
    names = sorted(PAINTS)[:5]
    images = np.stack([speck(PAINTS[name]) for name in names])
    captions = [f"a {names[(i * 2) % 5]} box" for i in range(5)]
    plain = color_recall(images, captions)
    moved = color_recall(images[list(order)], [captions[i] for i in order])
    assert moved == {key: pytest.approx(value) for key, value in plain.items()}


def test_true_images_have_high_color_recall():
    source = Scenes(count=60, resolution=32)
    records = [source[i] for i in range(60)]
    score = color_recall(
        np.stack([record.image for record in records]), [record.caption for record in records]
    )
    assert score["words"] > 60
    assert score["color_recall"] > 0.85
    assert score["chance"] < 0.5
