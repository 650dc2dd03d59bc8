"""Resizing: depth values are picked, the nearest point wins, image and depth stay aligned."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modality_forcing.data.records import Record, check
from modality_forcing.data.resize import (
    DENSE,
    Window,
    center_crop_resize,
    center_square,
    crop_resize,
    crop_resize_depth,
    crop_resize_image,
    crop_resize_intrinsics,
    downscale,
    downscale_depth,
    limit_longer_side,
    limit_shorter_side,
)
from modality_forcing.synthetic.source import Scenes

NONE = np.full((3, 3), np.nan, np.float32)


def record(
    depth: np.ndarray, valid: np.ndarray | None = None, intrinsics: np.ndarray = NONE
) -> Record:
    image = np.repeat(np.clip(depth, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
    valid = np.ones(depth.shape, np.bool_) if valid is None else valid
    return Record(
        image,
        depth.astype(np.float32),
        valid,
        intrinsics.astype(np.float32),
        "metric",
        "",
        "test",
        "0",
    )


def random_map(height: int, width: int, part: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.permutation(height * width).reshape(height, width).astype(
        np.float32
    ) + 1, rng.random((height, width)) < part


def test_record_of_the_target_size_is_unchanged():
    same = record(np.ones((8, 8)))
    assert center_crop_resize(same, 8) is same


def test_window_arithmetic():
    assert center_square((4, 10)) == Window(0, 3, 4, 4)
    assert center_square((10, 5)) == Window(2.5, 0, 5, 5)
    assert center_square((4, 10)).rescale((4, 10), (8, 20)) == Window(0, 6, 8, 8)


sizes = st.integers(1, 40)


@given(sizes, sizes, st.integers(1, 24), st.floats(0, 1), st.integers(0, 999))
def test_every_depth_is_one_of_the_inputs(height, width, resolution, part, seed):
    depth, valid = random_map(height, width, part, seed)
    out = check(center_crop_resize(record(depth, valid), resolution))
    assert out.depth.shape == (resolution, resolution)
    assert np.isin(out.depth[out.valid], depth[valid]).all()
    if valid.all():
        assert out.valid.all()


@given(st.integers(9, 60), st.integers(9, 60), st.integers(1, 8), st.integers(0, 999))
def test_nearest_of_the_sparse_points_in_each_cell(height, width, resolution, seed):
    depth, valid = random_map(height, width, 0.2, seed)
    side = min(height, width)
    assume(valid.sum() < DENSE * side * side)  # a tiny map may come out dense by chance
    out = center_crop_resize(record(depth, valid), resolution)
    expected = np.full((resolution, resolution), np.inf)
    for i, j in zip(*np.nonzero(valid), strict=True):
        row = (i + 0.5 - (height - side) / 2) * (resolution / side)
        column = (j + 0.5 - (width - side) / 2) * (resolution / side)
        if 0 <= row < resolution and 0 <= column < resolution:
            expected[int(row), int(column)] = min(expected[int(row), int(column)], depth[i, j])
    np.testing.assert_array_equal(out.valid, np.isfinite(expected))
    np.testing.assert_array_equal(out.depth[out.valid], expected[np.isfinite(expected)])


def test_no_point_is_lost_with_a_cell_each():
    depth, valid = np.full((64, 64), 9, np.float32), np.zeros((64, 64), np.bool_)
    rng = np.random.default_rng(0)
    rows = np.arange(0, 64, 8) + rng.integers(0, 8, 8)
    columns = np.arange(0, 64, 8) + rng.integers(0, 8, 8)
    valid[np.ix_(rows, columns)] = True
    assert center_crop_resize(record(depth, valid), 8).valid.all()


def test_density_grows_as_the_cells_do():
    for factor, part in ((2, 0.05), (4, 0.05), (8, 0.02)):
        depth, valid = random_map(256, 256, part, factor)
        out = center_crop_resize(record(depth, valid), 256 // factor)
        expected = 1 - (1 - part) ** (factor * factor)
        spread = 4 * np.sqrt(expected * (1 - expected)) / (256 // factor)
        assert abs(out.valid.mean() - expected) < spread


def test_dense_map_keeps_holes_and_depth():
    height, width = 96, 128
    ramp = np.broadcast_to(np.arange(width, dtype=np.float32) + 1, (height, width))
    valid = np.ones((height, width), np.bool_)
    valid[:, 40:60] = False
    out = center_crop_resize(record(ramp, valid), 16)
    # Exact depth of the ramp under each cell's center.
    centers = 16 + (np.arange(16) + 0.5) * 6 + 0.5
    hole = (centers > 40.5) & (centers <= 60.5)
    np.testing.assert_array_equal(out.valid, np.broadcast_to(~hole, (16, 16)))
    assert np.abs(out.depth - centers)[out.valid].max() <= 0.5


def test_enlarging_repeats_pixels():
    depth = np.array([[1, 2], [3, 4]], np.float32)
    valid = np.array([[True, False], [True, True]])
    out = center_crop_resize(record(depth, valid), 4)
    np.testing.assert_array_equal(out.valid, np.kron(valid, np.ones((2, 2))).astype(bool))
    np.testing.assert_array_equal(out.depth[out.valid], np.kron(depth, np.ones((2, 2)))[out.valid])


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(60, 100, 0.5), (100, 60, 2.0), (121, 77, 1.5), (64, 48, 0.25)]
)
def test_image_and_depth_of_other_size_stay_aligned(height, width, factor):
    """A bright block and a near block coincide after the crop, whatever the two sizes."""
    low_height, low_width = round(height * factor), round(width * factor)
    resolution = 16

    def block(h: int, w: int) -> np.ndarray:
        rows, columns = (np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w
        return ((rows > 0.3) & (rows < 0.6))[:, None] & ((columns > 0.45) & (columns < 0.75))[None]

    image = np.repeat(block(height, width).astype(np.uint8)[..., None] * 255, 3, axis=2)
    near = block(low_height, low_width)
    window = center_square((height, width))
    there = window.rescale((height, width), near.shape)
    small = crop_resize_image(image, window, resolution)[..., 0] > 127
    depth, valid = crop_resize_depth(
        np.where(near, 1, 9).astype(np.float32), np.ones(near.shape, np.bool_), there, resolution
    )
    assert valid.all()
    for axis in (0, 1):
        bright, close = np.nonzero(small)[axis], np.nonzero(depth == 1)[axis]
        assert (
            abs(int(bright.min()) - int(close.min())) <= 1
            and abs(int(bright.max()) - int(close.max())) <= 1
        )


@pytest.mark.parametrize(
    ("size", "resolution"), [((48, 64), 16), ((64, 48), 24), ((33, 50), 8), ((8, 12), 32)]
)
def test_intrinsics_follow_the_crop(size, resolution):
    """A ray through a corner of the window goes through that corner of the resized one."""
    intrinsics = np.array([[50, 0, 31.5], [0, 52, 20.25], [0, 0, 1]], np.float32)
    window = center_square(size)
    moved = crop_resize_intrinsics(intrinsics, window, resolution).astype(np.float64)
    for x, y in (
        (window.left, window.top),
        (window.left + window.width, window.top + window.height),
    ):
        # Edge 0 is at -0.5.
        ray = np.linalg.solve(intrinsics.astype(np.float64), [x - 0.5, y - 0.5, 1])
        u, v, w = moved @ ray
        expected = [
            (x - window.left) / window.width * resolution,
            (y - window.top) / window.height * resolution,
        ]
        np.testing.assert_allclose([u / w + 0.5, v / w + 0.5], expected, atol=1e-3)


def test_unknown_intrinsics_stay_unknown():
    assert np.isnan(center_crop_resize(record(np.ones((8, 12))), 4).intrinsics).all()


def test_images_are_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = crop_resize_image(stripes, center_square((64, 64)), 16)
    assert np.abs(small.astype(int) - 127).max() < 20


def test_window_outside_is_refused():
    for window in (Window(-1, 0, 4, 4), Window(0, 5, 4, 4)):
        with pytest.raises(ValueError):
            crop_resize(record(np.ones((8, 8))), window, 4)


LONG_SIDES = st.integers(1, 4000)


def frame(height: int, width: int, share: float = 1.0, seed: int = 0) -> Record:
    rng = np.random.default_rng(seed)
    valid = rng.random((height, width)) < share
    return Record(
        image=rng.integers(0, 256, (height, width, 3), np.uint8),
        depth=np.where(valid, rng.uniform(1, 80, (height, width)), np.nan).astype(np.float32),
        valid=valid,
        intrinsics=np.array([[60, 0, 20], [0, 61, 14], [0, 0, 1]], np.float32),
        unit="metric",
        caption="",
        source="",
        id="",
    )


@given(size=st.tuples(LONG_SIDES, LONG_SIDES), pixels=st.integers(1, 600))
def test_limit_shorter_side(size: tuple[int, int], pixels: int):
    new = limit_shorter_side(size, pixels)
    if min(size) <= pixels:
        assert new == size
        return
    assert min(new) == pixels and (max(new) - pixels) % 2 == 0
    assert new[0] <= size[0] and new[1] <= size[1]
    assert abs(max(new) - max(size) * pixels / min(size)) <= 1.5
    assert (new[0] <= new[1]) == (size[0] <= size[1]) or max(new) == min(new) or size[0] == size[1]


@given(size=st.tuples(LONG_SIDES, LONG_SIDES), pixels=st.integers(1, 600))
def test_limit_longer_side(size: tuple[int, int], pixels: int):
    new = limit_longer_side(size, pixels)
    if max(size) <= pixels:
        assert new == size
        return
    assert max(new) == pixels and min(new) >= 1
    assert min(new) == max(1, round(min(size) * pixels / max(size)))


def test_known_sizes():
    assert limit_shorter_side((375, 1242), 256) == (256, 848)
    assert limit_shorter_side((640, 480), 256) == (342, 256)
    assert limit_longer_side((1440, 1920), 512) == (384, 512)


def test_small_frame_is_unchanged():
    record = frame(20, 30)
    assert downscale(record, partial(limit_shorter_side, pixels=20)) is record
    assert downscale(record, partial(limit_longer_side, pixels=99)) is record


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 1.0])
def test_downscale_of_a_square_equals_crop_resize(share: float):
    record = frame(37, 37, share)
    small = check(downscale(record, partial(limit_shorter_side, pixels=16)))
    depth, valid = crop_resize_depth(record.depth, record.valid, center_square((37, 37)), 16)
    np.testing.assert_array_equal(small.depth, depth)
    np.testing.assert_array_equal(small.valid, valid)
    np.testing.assert_allclose(
        small.intrinsics, center_crop_resize(record, 16).intrinsics, rtol=1e-6
    )


def test_downscale_keeps_the_nearest_point():
    depth = np.full((4, 6), 9, np.float32)
    valid = np.zeros((4, 6), np.bool_)
    valid[0, 0], valid[1, 1], valid[3, 5] = True, True, True
    depth[1, 1], depth[3, 5] = 5, 7
    small, known = downscale_depth(depth, valid, (2, 3))
    assert small.tolist() == [[5, 0, 0], [0, 0, 7]]
    assert known.tolist() == [[True, False, False], [False, False, True]]


def test_downscale_keeps_holes_and_edges():
    depth = np.repeat(np.array([[2, 2, 2, 9, 9, 9]], np.float32), 6, axis=0)
    valid = np.ones((6, 6), np.bool_)
    valid[2:4, 2:4] = False
    small, known = downscale_depth(depth, valid, (3, 3))
    assert small.tolist() == [[2, 9, 9], [2, 0, 9], [2, 9, 9]]
    assert known.tolist() == [[True, True, True], [True, False, True], [True, True, True]]


def test_downscale_refuses_to_enlarge():
    with pytest.raises(ValueError, match="to"):
        downscale_depth(np.ones((4, 4), np.float32), np.ones((4, 4), np.bool_), (4, 5))


def test_downscale_keeps_points_in_space():
    """Unprojected pixels are where they were in the larger frame."""
    record = Scenes(resolution=96)[5]
    record = replace(
        record, **{name: getattr(record, name)[:72] for name in ("image", "depth", "valid")}
    )
    small = check(downscale(record, partial(limit_shorter_side, pixels=24)))
    assert small.depth.shape == (24, 32)
    row, column = np.nonzero(small.valid)
    back = np.linalg.inv(small.intrinsics) @ np.stack((column, row, np.ones(len(row))))
    before = record.intrinsics @ back
    source = record.depth[np.rint(before[1]).astype(int), np.rint(before[0]).astype(int)]
    # 3 : 1, so that centers fall on centers.
    np.testing.assert_array_equal(source, small.depth[row, column])


@given(st.integers(20, 50), st.integers(20, 50), st.integers(4, 30), st.booleans())
def test_normals_are_picked_where_dense_depth_is(height, width, to, whole):
    """Here a normal says which pixel it is of, as the depth does."""
    order = np.arange(height * width, dtype=np.float32).reshape(height, width)
    normals = np.stack([order, order + 1, order + 2], -1)
    before = replace(record(order + 1), normals=normals)
    if whole:
        after = downscale(before, partial(limit_shorter_side, pixels=to))
    else:
        after = center_crop_resize(before, to)
    assert after.normals is not None
    np.testing.assert_array_equal(after.normals[..., 0] + 1, after.depth)
    np.testing.assert_array_equal(after.normals[..., 2] - after.normals[..., 0], 2)
