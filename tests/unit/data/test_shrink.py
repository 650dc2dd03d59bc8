"""Whole frames at a smaller size: every depth is one that was measured, and geometry follows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.data.records import Record, check
from modality_forcing.data.resize import centre_square, fit, place_depth
from modality_forcing.data.shrink import longer_side, shorter_side, shrink, shrink_depth
from modality_forcing.synthetic.source import Scenes

SIDES = st.integers(1, 4000)


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


@given(size=st.tuples(SIDES, SIDES), pixels=st.integers(1, 600))
def test_the_shorter_side(size: tuple[int, int], pixels: int):
    new = shorter_side(size, pixels)
    if min(size) <= pixels:
        assert new == size
        return
    assert min(new) == pixels and (max(new) - pixels) % 2 == 0
    assert new[0] <= size[0] and new[1] <= size[1]
    assert abs(max(new) - max(size) * pixels / min(size)) <= 1.5
    assert (new[0] <= new[1]) == (size[0] <= size[1]) or max(new) == min(new) or size[0] == size[1]


@given(size=st.tuples(SIDES, SIDES), pixels=st.integers(1, 600))
def test_the_longer_side(size: tuple[int, int], pixels: int):
    new = longer_side(size, pixels)
    if max(size) <= pixels:
        assert new == size
        return
    assert max(new) == pixels and min(new) >= 1
    assert min(new) == max(1, round(min(size) * pixels / max(size)))


def test_known_sizes():
    assert shorter_side((375, 1242), 256) == (256, 848)
    assert shorter_side((640, 480), 256) == (342, 256)
    assert longer_side((1440, 1920), 512) == (384, 512)


def test_a_small_frame_is_left_alone():
    record = frame(20, 30)
    assert shrink(record, partial(shorter_side, pixels=20)) is record
    assert shrink(record, partial(longer_side, pixels=99)) is record


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 1.0])
def test_squares_are_as_training_makes_them(share: float):
    """Of a square, the stored frame is what `place_depth` would have given for its whole window."""
    record = frame(37, 37, share)
    small = check(shrink(record, partial(shorter_side, pixels=16)))
    depth, valid = place_depth(record.depth, record.valid, centre_square((37, 37)), 16)
    np.testing.assert_array_equal(small.depth, depth)
    np.testing.assert_array_equal(small.valid, valid)
    np.testing.assert_allclose(small.intrinsics, fit(record, 16).intrinsics, rtol=1e-6)


def test_of_points_in_a_cell_the_nearest_stays():
    depth = np.full((4, 6), 9, np.float32)
    valid = np.zeros((4, 6), np.bool_)
    valid[0, 0], valid[1, 1], valid[3, 5] = True, True, True
    depth[1, 1], depth[3, 5] = 5, 7
    small, known = shrink_depth(depth, valid, (2, 3))
    assert small.tolist() == [[5, 0, 0], [0, 0, 7]]
    assert known.tolist() == [[True, False, False], [False, False, True]]


def test_a_surface_keeps_its_holes_and_its_edges():
    depth = np.repeat(np.array([[2, 2, 2, 9, 9, 9]], np.float32), 6, axis=0)
    valid = np.ones((6, 6), np.bool_)
    valid[2:4, 2:4] = False
    small, known = shrink_depth(depth, valid, (3, 3))
    assert small.tolist() == [[2, 9, 9], [2, 0, 9], [2, 9, 9]]
    assert known.tolist() == [[True, True, True], [True, False, True], [True, True, True]]


def test_nothing_is_enlarged():
    with pytest.raises(ValueError, match="to"):
        shrink_depth(np.ones((4, 4), np.float32), np.ones((4, 4), np.bool_), (4, 5))


def test_points_in_space_stay_where_they_are():
    """A pixel and its depth, carried back into space by the intrinsics, move by less than a pixel of the smaller frame."""
    record = Scenes(resolution=96)[5]
    record = replace(
        record, **{name: getattr(record, name)[:72] for name in ("image", "depth", "valid")}
    )
    small = check(shrink(record, partial(shorter_side, pixels=24)))
    assert small.depth.shape == (24, 32)
    row, column = np.nonzero(small.valid)
    back = np.linalg.inv(small.intrinsics) @ np.stack((column, row, np.ones(len(row))))
    before = record.intrinsics @ back
    source = record.depth[np.rint(before[1]).astype(int), np.rint(before[0]).astype(int)]
    np.testing.assert_array_equal(
        source, small.depth[row, column]
    )  # 3 : 1, so that centres fall on centres
