"""Cropping and resizing: depth is only picked, the nearest point wins, picture and depth stay on top of each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modality_forcing.data.records import Record, check
from modality_forcing.data.resize import (
    DENSE,
    Window,
    centre_square,
    fit,
    place,
    place_depth,
    place_image,
    place_intrinsics,
)

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


def test_right_size_is_left_alone():
    same = record(np.ones((8, 8)))
    assert fit(same, 8) is same


def test_windows():
    assert centre_square((4, 10)) == Window(0, 3, 4, 4)
    assert centre_square((10, 5)) == Window(2.5, 0, 5, 5)
    assert centre_square((4, 10)).seen_from((4, 10), (8, 20)) == Window(0, 6, 8, 8)


sizes = st.integers(1, 40)


@given(sizes, sizes, st.integers(1, 24), st.floats(0, 1), st.integers(0, 999))
def test_every_depth_is_one_of_the_inputs(height, width, resolution, part, seed):
    depth, valid = random_map(height, width, part, seed)
    out = check(fit(record(depth, valid), resolution))
    assert out.depth.shape == (resolution, resolution)
    assert np.isin(out.depth[out.valid], depth[valid]).all()
    if valid.all():
        assert out.valid.all()


@given(st.integers(9, 60), st.integers(9, 60), st.integers(1, 8), st.integers(0, 999))
def test_nearest_of_the_sparse_points_in_each_cell(height, width, resolution, seed):
    depth, valid = random_map(height, width, 0.2, seed)
    side = min(height, width)
    assume(valid.sum() < DENSE * side * side)  # a tiny map may come out dense by chance
    out = fit(record(depth, valid), resolution)
    expected = np.full((resolution, resolution), np.inf)
    for i, j in zip(*np.nonzero(valid), strict=True):
        row = (i + 0.5 - (height - side) / 2) * resolution / side
        column = (j + 0.5 - (width - side) / 2) * resolution / side
        if 0 <= row < resolution and 0 <= column < resolution:
            expected[int(row), int(column)] = min(expected[int(row), int(column)], depth[i, j])
    np.testing.assert_array_equal(out.valid, np.isfinite(expected))
    np.testing.assert_array_equal(out.depth[out.valid], expected[np.isfinite(expected)])


def test_all_points_survive_when_each_has_its_cell():
    depth, valid = np.full((64, 64), 9, np.float32), np.zeros((64, 64), np.bool_)
    rng = np.random.default_rng(0)
    rows, columns = (
        np.arange(0, 64, 8) + rng.integers(0, 8, 8),
        np.arange(0, 64, 8) + rng.integers(0, 8, 8),
    )
    valid[np.ix_(rows, columns)] = True
    assert fit(record(depth, valid), 8).valid.all()


def test_density_grows_as_the_cells_do():
    for factor, part in ((2, 0.05), (4, 0.05), (8, 0.02)):
        depth, valid = random_map(256, 256, part, factor)
        out = fit(record(depth, valid), 256 // factor)
        expected = 1 - (1 - part) ** (factor * factor)
        spread = 4 * np.sqrt(expected * (1 - expected)) / (256 // factor)
        assert abs(out.valid.mean() - expected) < spread


def test_a_dense_map_keeps_its_holes_and_does_not_move_nearer():
    height, width = 96, 128
    ramp = np.broadcast_to(np.arange(width, dtype=np.float32) + 1, (height, width))
    valid = np.ones((height, width), np.bool_)
    valid[:, 40:60] = False
    out = fit(record(ramp, valid), 16)
    centres = (
        16 + (np.arange(16) + 0.5) * 6 + 0.5
    )  # exact depth of the ramp under each cell's centre
    hole = (centres > 40.5) & (centres <= 60.5)
    np.testing.assert_array_equal(out.valid, np.broadcast_to(~hole, (16, 16)))
    assert np.abs(out.depth - centres)[out.valid].max() <= 0.5


def test_enlarging_repeats_the_nearest():
    depth = np.array([[1, 2], [3, 4]], np.float32)
    valid = np.array([[True, False], [True, True]])
    out = fit(record(depth, valid), 4)
    np.testing.assert_array_equal(out.valid, np.kron(valid, np.ones((2, 2))).astype(bool))
    np.testing.assert_array_equal(out.depth[out.valid], np.kron(depth, np.ones((2, 2)))[out.valid])


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(60, 100, 0.5), (100, 60, 2.0), (121, 77, 1.5), (64, 48, 0.25)]
)
def test_picture_and_depth_of_other_size_see_the_same(height, width, factor):
    """A bright block and the near block lie at the same place after the crop, whatever the sizes of the two rasters."""
    low_height, low_width = round(height * factor), round(width * factor)
    resolution = 16

    def block(h: int, w: int) -> np.ndarray:
        rows, columns = (np.arange(h) + 0.5) / h, (np.arange(w) + 0.5) / w
        return ((rows > 0.3) & (rows < 0.6))[:, None] & ((columns > 0.45) & (columns < 0.75))[None]

    image = np.repeat(block(height, width).astype(np.uint8)[..., None] * 255, 3, axis=2)
    near = block(low_height, low_width)
    window = centre_square((height, width))
    there = window.seen_from((height, width), near.shape)
    small = place_image(image, window, resolution)[..., 0] > 127
    depth, valid = place_depth(
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
def test_intrinsics_point_where_the_picture_moved(size, resolution):
    """A ray through the corner of a crop's pixel in the old raster goes through that corner in the new one."""
    intrinsics = np.array([[50, 0, 31.5], [0, 52, 20.25], [0, 0, 1]], np.float32)
    window = centre_square(size)
    moved = place_intrinsics(intrinsics, window, resolution).astype(np.float64)
    for x, y in (
        (window.left, window.top),
        (window.left + window.width, window.top + window.height),
    ):
        ray = np.linalg.solve(
            intrinsics.astype(np.float64), [x - 0.5, y - 0.5, 1]
        )  # edge 0 lies at -0.5
        u, v, w = moved @ ray
        expected = [
            (x - window.left) / window.width * resolution,
            (y - window.top) / window.height * resolution,
        ]
        np.testing.assert_allclose([u / w + 0.5, v / w + 0.5], expected, atol=1e-3)


def test_unknown_intrinsics_stay_unknown():
    assert np.isnan(fit(record(np.ones((8, 12))), 4).intrinsics).all()


def test_pictures_are_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    small = place_image(stripes, centre_square((64, 64)), 16)
    assert np.abs(small.astype(int) - 127).max() < 20


def test_a_window_outside_is_refused_and_not_taken_from_elsewhere():
    for window in (Window(-1, 0, 4, 4), Window(0, 5, 4, 4)):
        with pytest.raises(ValueError):
            place(record(np.ones((8, 8))), window, 4)
