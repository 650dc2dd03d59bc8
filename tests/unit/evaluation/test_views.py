"""The view warp: identity cases and preserved geometry."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.errors import UserError
from modality_forcing.evaluation.benchmarks.registry import BENCHMARKS, Frame
from modality_forcing.evaluation.views import (
    ViewName,
    drop_far,
    make_eval_frame,
    parse_view,
    view_size,
    warp,
)


def camera(fx=1.0, fy=1.0, cx=0.5, cy=0.5):
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float32)


def frame(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return image, rng.uniform(1, 9, (height, width)).astype("f4"), rng.random((height, width)) < 0.8


def rays(intrinsics, width, height):
    u, v = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(intrinsics.astype(np.float64)).T


@pytest.mark.parametrize("size", [(24, 16), (16, 16), (15, 31)])
def test_frame_equal_to_the_view_is_unchanged(size):
    width, height = size
    image, depth, valid = frame(height, width)
    k = camera(1.0, width / height)
    view = warp(image, depth, valid, k, width_height=size)
    np.testing.assert_array_equal(view.image, image)
    np.testing.assert_array_equal(view.valid, valid)
    np.testing.assert_allclose(view.depth[valid], depth[valid], rtol=1e-6)
    np.testing.assert_allclose(view.intrinsics, k, rtol=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    st.floats(0.7, 2.0),
    st.floats(0.4, 0.6),
    st.floats(0.4, 0.6),
    st.sampled_from([(32, 32), (48, 24), (20, 30)]),
)
def test_warp_preserves_planes(f, cx, cy, size):
    """A plane keeps its distance along the axis of the view."""
    height, width = 90, 120
    k, n = camera(f, f * width / height, cx, cy), np.array([0.05, 0.1, 1.0])
    depth = (4 / (rays(k, width, height) @ n)).astype("f4")
    view = warp(
        np.zeros((height, width, 3), np.uint8),
        depth,
        np.ones((height, width), bool),
        k,
        width_height=size,
    )
    assert view.valid.mean() > 0.95
    middle = np.linalg.inv(k.astype(np.float64)) @ (0.5, 0.5, 1)
    axis = middle / np.linalg.norm(middle)
    at = size[1] // 2, size[0] // 2
    expected = 4 / (axis @ n)
    assert view.depth[at] == pytest.approx(expected, rel=0.03)
    np.testing.assert_allclose(view.intrinsics[:2, 2], 0.5)
    assert view.intrinsics[0, 0] >= k[0, 0] * (1 - 1e-6) and view.intrinsics[1, 1] >= k[1, 1] * (
        1 - 1e-6
    )
    assert view.intrinsics[1, 1] / view.intrinsics[0, 0] == pytest.approx(
        size[0] / size[1], rel=1e-5
    )


def test_warp_scales_with_the_unit():
    image, depth, valid = frame(40, 60)
    k = camera(0.9, 1.3, 0.45, 0.55)
    plain, scaled = (warp(image, x, valid, k, width_height=(32, 32)) for x in (depth, 1000 * depth))
    np.testing.assert_array_equal(plain.valid, scaled.valid)
    np.testing.assert_allclose(scaled.depth, 1000 * plain.depth, rtol=1e-6)


def test_far_pixels_are_dropped_by_quantile():
    depth = np.ones((10, 20), np.float32)
    depth[0, :2] = 999, 1001
    valid = np.ones((10, 20), bool)
    kept = drop_far(depth, valid)
    assert kept.sum() == 199 and not kept[0, 1]
    none = np.zeros_like(valid)
    assert not drop_far(depth, none).any()


def test_invalid_intrinsics_are_refused():
    image, depth, valid = frame(8, 8)
    with pytest.raises(UserError, match="not a pinhole camera"):
        warp(image, depth, valid, camera(0.0), width_height=(8, 8))
    with pytest.raises(ValueError):
        warp(image[:4], depth, valid, camera(), width_height=(8, 8))


NYU = BENCHMARKS["nyuv2"]
CAMERA = np.array([[0.9, 0, 0.52], [0, 1.2, 0.47], [0, 0, 1]], np.float32)


def benchmark_frame(height: int = 48, width: int = 64, camera: np.ndarray | None = CAMERA) -> Frame:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((height, 1, 3))
    depth = rng.uniform(1, 9, (height, width)).astype("f4")
    valid = rng.random((height, width)) < 0.8
    return Frame("a", ramp.astype("u1"), np.where(valid, depth, 0).astype("f4"), valid, camera)


def test_square_view_equals_moge_at_model_size():
    one = benchmark_frame()
    seen = make_eval_frame(one, NYU, "square", 32)
    expected = warp(one.image, one.depth, one.valid, CAMERA, width_height=(32, 32))
    np.testing.assert_array_equal(seen.model_image, expected.image)
    np.testing.assert_array_equal(seen.image, expected.image)
    np.testing.assert_array_equal(seen.target, expected.depth)
    np.testing.assert_array_equal(seen.valid, expected.valid)
    assert seen.has_intrinsics and seen.name == "a"


def test_moge_view_has_published_size_and_is_resized_for_the_model():
    seen = make_eval_frame(benchmark_frame(), NYU, "moge", 32)
    assert seen.image.shape == (480, 640, 3) and seen.target.shape == seen.valid.shape == (480, 640)
    assert seen.model_image.shape == (32, 32, 3)
    # The ramp covers the full width in both.
    np.testing.assert_allclose(
        seen.model_image.mean(axis=(0, 2))[[0, -1]], seen.image.mean(axis=(0, 2))[[10, -11]], atol=4
    )


def test_frame_view_is_unchanged():
    one = benchmark_frame()
    seen = make_eval_frame(one, NYU, "frame", 16)
    np.testing.assert_array_equal(seen.target, one.depth)
    np.testing.assert_array_equal(seen.image, one.image)
    assert seen.model_image.shape == (16, 16, 3)


def test_far_depth_is_dropped_in_views_only():
    one = benchmark_frame()
    one.depth[0, 0], one.valid[0, 0] = 1e6, True
    one.depth[24, 32], one.valid[24, 32] = 1e6, True
    assert make_eval_frame(one, NYU, "frame", 16).valid.sum() == one.valid.sum()
    seen = make_eval_frame(one, NYU, "moge", 16)
    assert seen.target[seen.valid].max() < 10


def test_view_without_intrinsics_is_a_center_crop():
    one = benchmark_frame(camera=None)
    seen = make_eval_frame(one, NYU, "square", 48)
    assert not seen.has_intrinsics
    crop = one.depth[:, 8:56]
    np.testing.assert_array_equal(seen.valid, one.valid[:, 8:56])
    np.testing.assert_allclose(seen.target, crop, rtol=1e-6)


def test_view_names_and_sizes():
    assert [view_size(NYU, name, 32) for name in get_args(ViewName)] == [(32, 32), (640, 480), None]
    assert parse_view("moge") == "moge"
    with pytest.raises(UserError, match="choose one of square, moge, frame"):
        parse_view("crop")
