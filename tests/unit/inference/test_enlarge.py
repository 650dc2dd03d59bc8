"""Enlarged maps: guided by edges of the photograph, bilinear otherwise."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.data.resize import Window, crop_resize_image
from modality_forcing.evaluation.resample import resize_prediction
from modality_forcing.inference.enlarge import enlarge_depth

RNG = np.random.default_rng(0)


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A near red disk before a far blue wall: the image, its depth, and that in 16 x 16 cells."""
    y, x = np.mgrid[:128, :128]
    near = (y - 60) ** 2 + (x - 70) ** 2 < 30**2
    image = np.where(near[..., None], [200, 40, 30], [30, 50, 190]).astype(np.int64)
    image = np.clip(image + RNG.integers(-9, 10, image.shape), 0, 255).astype(np.uint8)
    depth = np.where(near, 1.0, 3.0).astype(np.float32)
    return image, depth, depth.reshape(16, 8, 16, 8).mean((1, 3))


def test_edges_are_where_the_photograph_has_them():
    image, depth, small = scene()
    guided, bilinear = enlarge_depth(small, image), resize_prediction(small, depth.shape)
    errors = [np.abs(np.log(x / depth)).mean() for x in (guided, bilinear)]
    assert errors[0] < 0.6 * errors[1]
    known = crop_resize_image(image, Window(0, 0, *depth.shape), small.shape)
    np.testing.assert_array_equal(enlarge_depth(small, image, small=known), guided)
    smeared = [np.mean((x > 1.3) & (x < 2.6)) for x in (guided, bilinear)]
    assert smeared[0] < 0.6 * smeared[1]


def test_without_edges_it_is_smooth():
    gray = np.full((64, 64, 3), 90, np.uint8)
    ramp = np.tile(np.linspace(1, 2, 16, dtype=np.float32), (16, 1))
    np.testing.assert_allclose(
        enlarge_depth(ramp, gray)[:, 20:-20],
        resize_prediction(ramp, (64, 64))[:, 20:-20],
        rtol=0.01,
    )
    np.testing.assert_array_equal(enlarge_depth(ramp, gray[:20]), resize_prediction(ramp, (20, 64)))


@given(st.integers(1, 9), st.integers(1, 9), st.floats(1e-3, 1e3))
def test_results_are_within_the_range_of_depth_in_any_unit(rows, columns, unit):
    rng = np.random.default_rng(rows * 10 + columns)
    depth = rng.uniform(0.5, 3, (rows, columns)).astype(np.float32)
    guide = rng.integers(0, 256, (3 * rows, 2 * columns, 3), np.uint8)
    made = enlarge_depth(depth, guide)
    assert made.shape == (3 * rows, 2 * columns) and made.dtype == np.float32
    assert made.min() >= depth.min() * (1 - 1e-5) and made.max() <= depth.max() * (1 + 1e-5)
    scaled = enlarge_depth((unit * depth).astype(np.float32), guide)
    np.testing.assert_allclose(scaled, unit * made, rtol=1e-4)
