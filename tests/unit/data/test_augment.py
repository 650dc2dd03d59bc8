"""Crops and flips: the 3-D points of a record stay where they were, to the stated part of a pixel, or are mirrored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.data.augment import Augment, mirror
from modality_forcing.data.records import Record, check
from modality_forcing.data.resize import fit
from modality_forcing.errors import UserError

SQUARE = Augment()


def record(
    height: int, width: int, part: float = 1.0, seed: int = 0, caption: str = "a room"
) -> Record:
    """A record of which every depth is another number and every pixel of the picture tells its row and column."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    valid = rng.random((height, width)) < part
    depth = (rng.permutation(height * width).reshape(height, width) + 1).astype(np.float32)
    k = [
        [rng.uniform(20, 90), rng.uniform(-2, 2), rng.uniform(0, width)],
        [0, rng.uniform(20, 90), rng.uniform(0, height)],
    ]
    return Record(
        image=np.stack((rows, columns, np.zeros_like(rows)), axis=2).astype(np.uint8),
        depth=np.where(valid, depth, np.float32(np.nan)),
        valid=valid,
        intrinsics=np.array([*k, [0, 0, 1]], np.float32),
        unit="metric",
        caption=caption,
        source="test",
        id="0",
    )


def rays(of: Record) -> tuple[np.ndarray, np.ndarray]:
    """Depths [n] of the valid pixels and the points [3 n] one metre deep on their rays."""
    row, column = np.nonzero(of.valid)
    pixels = np.stack((column, row, np.ones_like(row))).astype(np.float64)
    return of.depth[row, column], np.linalg.solve(of.intrinsics.astype(np.float64), pixels)


sides = st.integers(8, 60)
crops = st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)).map(lambda pair: (min(pair), max(pair)))
augments = st.builds(
    Augment, crop=crops, shift=st.floats(0, 1), flip=st.sampled_from([0.0, 0.5, 1.0])
)


@given(sides, sides, st.floats(0.02, 1), augments, st.integers(4, 40), st.integers(0, 999))
def test_points_stay_where_they_were(height, width, part, augment, resolution, seed):
    """Each point has the depth of a measured one, on a ray within half a pixel, of the coarser raster, of that one's."""
    before = record(height, width, part, seed)
    draws = np.random.default_rng(seed).random(4)
    mirrored = draws[3] < augment.flip
    after = check(augment(before, resolution, np.random.default_rng(seed)))
    assert after.depth.shape == (resolution, resolution) and after.caption == before.caption
    if mirrored:
        after = mirror(after)
    depth, _ = rays(after)
    if not len(depth):
        return
    known, measured = rays(before)
    order = np.argsort(known)
    place = order[np.searchsorted(known[order], depth)]
    np.testing.assert_array_equal(known[place], depth)  # the same number: nothing was mixed
    expected = after.intrinsics.astype(np.float64) @ measured[:, place]
    row, column = np.nonzero(after.valid)
    off = np.abs(expected[:2] - np.stack((column, row)))
    scale = (
        after.intrinsics[1, 1] / before.intrinsics[1, 1]
    )  # target pixels per pixel of the record
    assert off.max() <= 0.5 * max(1, scale) + 1e-3


@given(sides, sides, st.integers(0, 999))
def test_a_mirror_mirrors_the_points_exactly_and_twice_is_nothing(height, width, seed):
    before = record(height, width, 0.3, seed)
    after = mirror(before)
    points, mirrored = (
        dict(zip(d.tolist(), (r * d).T, strict=True)) for d, r in map(rays, (before, after))
    )
    assert points.keys() == mirrored.keys()
    for depth, point in points.items():
        np.testing.assert_allclose(
            mirrored[depth], point * [-1, 1, 1], rtol=1e-4, atol=1e-4 * depth
        )
    np.testing.assert_array_equal(after.image[..., 1], before.image[:, ::-1, 1])
    twice = mirror(after)
    for name in ("image", "depth", "valid"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(before, name))
    np.testing.assert_allclose(twice.intrinsics, before.intrinsics, atol=1e-4)


@given(sides, sides, augments, st.integers(4, 40), st.integers(0, 999))
def test_picture_and_depth_move_together(height, width, augment, resolution, seed):
    """With depth that tells its place as the picture does, both tell the same place after the transform."""
    before = record(height, width, 1.0, seed)
    before = replace(
        before,
        depth=before.image[..., 1].astype(np.float32) + 1,
        valid=np.ones((height, width), bool),
    )
    after = augment(before, resolution, np.random.default_rng(seed))
    inner = np.s_[2:-2, 2:-2]  # the filters of the picture repeat its edge
    side = resolution * before.intrinsics[0, 0] / after.intrinsics[0, 0]
    off = np.abs(after.image[inner][..., 1].astype(float) + 1 - after.depth[inner])
    assert off.size == 0 or off.max() <= 1.5 + side / resolution


@given(sides, sides, augments, st.integers(4, 40), st.integers(0, 999))
def test_windows_stay_within_their_bounds(height, width, augment, resolution, seed):
    before = record(height, width, 1.0, seed)
    after = augment(before, resolution, np.random.default_rng(seed))
    side, short = resolution * before.intrinsics[1, 1] / after.intrinsics[1, 1], min(height, width)
    least, most = (short * part for part in augment.crop)
    assert (
        max(least, min(short, resolution)) - 0.51
        <= side
        <= max(most, min(short, resolution)) + 0.51
    )
    if not augment.shift:
        middle = (after.intrinsics[1, 2] + 0.5) * side / resolution - before.intrinsics[1, 2] - 0.5
        assert abs(side / 2 - middle - height / 2) <= 0.5 + 1e-2


def test_nothing_is_varied_by_default():
    for size in ((20, 33), (12, 12)):
        before = record(*size, part=0.4)
        after, expected = SQUARE(before, 12, np.random.default_rng(0)), fit(before, 12)
        for name in ("image", "depth", "valid", "intrinsics"):
            np.testing.assert_array_equal(getattr(after, name), getattr(expected, name))


def test_all_of_the_picture_is_seen_at_times():
    augment, rng = Augment(crop=(0.25, 1), shift=1, flip=0.5), np.random.default_rng(0)
    before, seen, sizes, flips = record(48, 64), np.zeros((48, 64), int), [], 0
    for _ in range(400):
        after = augment(before, 12, rng)
        flip = after.image[0, 0, 1] > after.image[0, -1, 1]
        flips += flip
        row, column = after.image[..., 0], after.image[..., 1]
        seen[row.min() : row.max() + 1, column.min() : column.max() + 1] += 1
        sizes.append(12 * before.intrinsics[0, 0] / after.intrinsics[0, 0])
    assert seen[2:-2, 2:-2].min() >= 1 and seen[20:28, 28:36].min() > 100
    assert abs(flips - 200) < 45
    assert (
        min(sizes) < 13 and max(sizes) > 46 and abs(np.median(sizes) - 24) < 4
    )  # the middle of 12 and 48 in logarithm


def test_windows_stray_down_and_sideways_each_on_its_own():
    augment, rng = Augment(crop=(0.5, 0.5), shift=1), np.random.default_rng(0)
    corners = np.array(
        [augment(record(48, 48), 24, rng).image[0, 0, :2] for _ in range(200)], float
    )
    assert corners.min() == 0 and corners.max() == 24
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.25


def test_a_window_of_as_many_pixels_is_cut_and_not_filtered():
    before = record(40, 50)
    after = Augment(crop=(0.1, 0.1), shift=1)(before, 16, np.random.default_rng(3))
    top, left = after.image[0, 0, :2]
    assert (top, left) != (12, 17)
    np.testing.assert_array_equal(after.image, before.image[top : top + 16, left : left + 16])
    np.testing.assert_array_equal(after.depth, before.depth[top : top + 16, left : left + 16])


def test_small_pictures_are_not_cropped():
    after = Augment(crop=(0.2, 0.2), shift=0)(record(10, 10), 20, np.random.default_rng(0))
    assert after.intrinsics[0, 0] == pytest.approx(2 * record(10, 10).intrinsics[0, 0])


@pytest.mark.parametrize(
    ("caption", "flips"),
    [
        ("a red sphere left of a box", False),
        ("Right: a tree", False),
        ("a bright cleft outdoors", True),
        ("", True),
    ],
)
def test_captions_stay_true(caption: str, flips: bool):
    before = record(12, 12, caption=caption)
    after = Augment(flip=1)(before, 12, np.random.default_rng(0))
    assert (after.image[0, 0, 1] > 0) == flips and after.caption == caption


def test_unknown_intrinsics_stay_unknown():
    before = replace(record(20, 30), intrinsics=np.full((3, 3), np.nan, np.float32))
    assert np.isnan(
        Augment(crop=(0.5, 1), shift=1, flip=1)(before, 8, np.random.default_rng(0)).intrinsics
    ).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"crop": (0.0, 1.0)}, "augment.crop is 0 to 1"),
        ({"crop": (0.9, 0.5)}, "augment.crop is 0.9 to 0.5"),
        ({"crop": (0.5, 1.5)}, "augment.crop is 0.5 to 1.5"),
        ({"flip": 1.1}, "augment.flip is 1.1"),
        ({"shift": float("nan")}, "augment.shift is nan"),
    ],
)
def test_refuses_what_cannot_be(settings: dict, told: str):
    with pytest.raises(UserError, match=told):
        Augment(**settings)
