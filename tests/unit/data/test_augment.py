"""Crops and flips: 3-D points stay in place, to half a pixel, or are mirrored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.data.augment import Augment, hflip
from modality_forcing.data.records import Record, check
from modality_forcing.data.resize import center_crop_resize
from modality_forcing.errors import UserError

SQUARE = Augment()


def record(
    height: int, width: int, part: float = 1.0, seed: int = 0, caption: str = "a room"
) -> Record:
    """A record of distinct depths, and of an image whose pixels hold their row and column."""
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
    """Depths [n] of the valid pixels and the points [3 n] one meter deep on their rays."""
    row, column = np.nonzero(of.valid)
    pixels = np.stack((column, row, np.ones_like(row))).astype(np.float64)
    return of.depth[row, column], np.linalg.solve(of.intrinsics.astype(np.float64), pixels)


sides = st.integers(8, 60)
crops = st.tuples(st.floats(0.1, 1), st.floats(0.1, 1)).map(lambda pair: (min(pair), max(pair)))
augments = st.builds(
    Augment,
    crop_range=crops,
    crop_jitter=st.floats(0, 1),
    flip_prob=st.sampled_from([0.0, 0.5, 1.0]),
)


@given(sides, sides, st.floats(0.02, 1), augments, st.integers(4, 40), st.integers(0, 999))
def test_points_keep_their_depth_and_ray(height, width, part, augment, resolution, seed):
    """Each point has a measured depth, within half a (coarser) pixel of its measured ray."""
    before = record(height, width, part, seed)
    draws = np.random.default_rng(seed).random(4)
    mirrored = draws[3] < augment.flip_prob
    after = check(augment(before, resolution, np.random.default_rng(seed)))
    assert after.depth.shape == (resolution, resolution) and after.caption == before.caption
    if mirrored:
        after = hflip(after)
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
    # Target pixels per pixel of the record.
    scale = after.intrinsics[1, 1] / before.intrinsics[1, 1]
    assert off.max() <= 0.5 * max(1, scale) + 1e-3


@given(sides, sides, st.integers(0, 999))
def test_hflip_mirrors_points_exactly_and_inverts_itself(height, width, seed):
    before = record(height, width, 0.3, seed)
    after = hflip(before)
    points, mirrored = (
        dict(zip(d.tolist(), (r * d).T, strict=True)) for d, r in map(rays, (before, after))
    )
    assert points.keys() == mirrored.keys()
    for depth, point in points.items():
        np.testing.assert_allclose(
            mirrored[depth], point * [-1, 1, 1], rtol=1e-4, atol=1e-4 * depth
        )
    np.testing.assert_array_equal(after.image[..., 1], before.image[:, ::-1, 1])
    twice = hflip(after)
    for name in ("image", "depth", "valid"):
        np.testing.assert_array_equal(getattr(twice, name), getattr(before, name))
    np.testing.assert_allclose(twice.intrinsics, before.intrinsics, atol=1e-4)


@given(sides, sides, augments, st.integers(4, 40), st.integers(0, 999))
def test_image_and_depth_move_together(height, width, augment, resolution, seed):
    """Where depth and image encode the same position, they still agree after the transform."""
    before = record(height, width, 1.0, seed)
    before = replace(
        before,
        depth=before.image[..., 1].astype(np.float32) + 1,
        valid=np.ones((height, width), bool),
    )
    after = augment(before, resolution, np.random.default_rng(seed))
    inner = np.s_[2:-2, 2:-2]  # the filters of the image repeat its edge
    side = resolution * before.intrinsics[0, 0] / after.intrinsics[0, 0]
    off = np.abs(after.image[inner][..., 1].astype(float) + 1 - after.depth[inner])
    assert off.size == 0 or off.max() <= 1.5 + side / resolution


@given(sides, sides, augments, st.integers(4, 40), st.integers(0, 999))
def test_window_sides_are_within_crop_range(height, width, augment, resolution, seed):
    before = record(height, width, 1.0, seed)
    after = augment(before, resolution, np.random.default_rng(seed))
    side, short = resolution * before.intrinsics[1, 1] / after.intrinsics[1, 1], min(height, width)
    least, most = (short * part for part in augment.crop_range)
    assert (
        max(least, min(short, resolution)) - 0.51
        <= side
        <= max(most, min(short, resolution)) + 0.51
    )
    if not augment.crop_jitter:
        middle = (after.intrinsics[1, 2] + 0.5) * side / resolution - before.intrinsics[1, 2] - 0.5
        assert abs(side / 2 - middle - height / 2) <= 0.5 + 1e-2


def test_default_is_the_center_crop():
    for size in ((20, 33), (12, 12)):
        before = record(*size, part=0.4)
        after = SQUARE(before, 12, np.random.default_rng(0))
        expected = center_crop_resize(before, 12)
        for name in ("image", "depth", "valid", "intrinsics"):
            np.testing.assert_array_equal(getattr(after, name), getattr(expected, name))


def test_windows_cover_the_whole_image():
    augment = Augment(crop_range=(0.25, 1), crop_jitter=1, flip_prob=0.5)
    rng = np.random.default_rng(0)
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
    # The middle of 12 and 48 in logarithm.
    assert min(sizes) < 13 and max(sizes) > 46 and abs(np.median(sizes) - 24) < 4


def test_vertical_and_horizontal_jitter_are_independent():
    augment, rng = Augment(crop_range=(0.5, 0.5), crop_jitter=1), np.random.default_rng(0)
    corners = np.array(
        [augment(record(48, 48), 24, rng).image[0, 0, :2] for _ in range(200)], float
    )
    assert corners.min() == 0 and corners.max() == 24
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.25


def test_window_of_the_target_size_is_not_filtered():
    before = record(40, 50)
    after = Augment(crop_range=(0.1, 0.1), crop_jitter=1)(before, 16, np.random.default_rng(3))
    top, left = after.image[0, 0, :2]
    assert (top, left) != (12, 17)
    np.testing.assert_array_equal(after.image, before.image[top : top + 16, left : left + 16])
    np.testing.assert_array_equal(after.depth, before.depth[top : top + 16, left : left + 16])


def test_small_images_are_not_cropped():
    after = Augment(crop_range=(0.2, 0.2), crop_jitter=0)(
        record(10, 10), 20, np.random.default_rng(0)
    )
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
def test_captions_with_sides_are_not_flipped(caption: str, flips: bool):
    before = record(12, 12, caption=caption)
    after = Augment(flip_prob=1)(before, 12, np.random.default_rng(0))
    assert (after.image[0, 0, 1] > 0) == flips and after.caption == caption


def test_unknown_intrinsics_stay_unknown():
    before = replace(record(20, 30), intrinsics=np.full((3, 3), np.nan, np.float32))
    assert np.isnan(
        Augment(crop_range=(0.5, 1), crop_jitter=1, flip_prob=1)(
            before, 8, np.random.default_rng(0)
        ).intrinsics
    ).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_range": (0.0, 1.0)}, "augment.crop_range is 0 to 1"),
        ({"crop_range": (0.9, 0.5)}, "augment.crop_range is 0.9 to 0.5"),
        ({"crop_range": (0.5, 1.5)}, "augment.crop_range is 0.5 to 1.5"),
        ({"flip_prob": 1.1}, "augment.flip_prob is 1.1"),
        ({"crop_jitter": float("nan")}, "augment.crop_jitter is nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        Augment(**settings)


def test_one_of_several_captions_is_drawn():
    several = replace(record(8, 8), other_captions=("two", "three"))
    drawn = [Augment()(several, 8, np.random.default_rng(seed)) for seed in range(60)]
    again = [Augment()(several, 8, np.random.default_rng(seed)).caption for seed in range(60)]
    assert [one.caption for one in drawn] == again
    assert min(again.count(caption) for caption in ("a room", "two", "three")) > 10
    assert not any(one.other_captions for one in drawn)
