"""Sparsity patterns: within the valid pixels, as sparse as stated, shaped like their sensor."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.data.records import Record, check
from modality_forcing.data.sparsity import (
    DEFAULT_MIXTURE,
    MAX_DENSITY,
    PATTERNS,
    depth_edges,
    sparsify,
    with_dense,
)
from modality_forcing.errors import UserError
from modality_forcing.synthetic.source import Scenes

FLOORS = {"uniform": 0.005, "lidar": 0.03, "sfm": 0.004, "sensor": 0.1, "missing": 0.0}


@lru_cache
def record(index: int, resolution: int = 32) -> Record:
    return Scenes(resolution=resolution, split="sparse")[index]


def plain(height: int = 40, width: int = 56, intrinsics: np.ndarray | None = None) -> Record:
    """A gray image of a wall two meters away, with depth at every pixel."""
    return Record(
        image=np.full((height, width, 3), 128, np.uint8),
        depth=np.full((height, width), 2, np.float32),
        valid=np.ones((height, width), bool),
        intrinsics=np.full((3, 3), np.nan, np.float32) if intrinsics is None else intrinsics,
        unit="relative",
        caption="a wall",
        source="test",
        id="0",
    )


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(PATTERNS)),
    st.integers(0, 30),
    st.integers(0, 2**32),
    st.sampled_from((24, 32, 64)),
)
def test_patterns_select_valid_pixels_only(name: str, index: int, seed: int, resolution: int):
    one = record(index, resolution)
    mask = PATTERNS[name](one, np.random.default_rng(seed))
    assert mask.dtype == np.bool_ and mask.shape == one.valid.shape
    assert not np.any(mask & ~one.valid)
    assert mask.mean() <= MAX_DENSITY or name == "dense"
    np.testing.assert_array_equal(mask, PATTERNS[name](one, np.random.default_rng(seed)))


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("known", [0, 1, 3])
def test_few_valid_pixels_are_accepted(name: str, known: int):
    one = plain()
    valid = np.zeros_like(one.valid)
    valid.ravel()[777 : 777 + known] = True
    mask = PATTERNS[name](replace(one, valid=valid), np.random.default_rng(0))
    assert not np.any(mask & ~valid)


@pytest.mark.parametrize("name", DEFAULT_MIXTURE)
@pytest.mark.parametrize("resolution", [32, 64])
def test_density_on_average(name: str, resolution: int):
    density = [
        PATTERNS[name](record(i, resolution), np.random.default_rng(i)).mean() for i in range(60)
    ]
    assert FLOORS[name] <= np.mean(density) <= 0.25
    assert len(set(density)) > 20 or name == "missing"


@pytest.mark.parametrize("resolution", [32, 64])
def test_default_mixture_keeps_at_most_a_tenth(resolution: int):
    rng = np.random.default_rng(3)
    density = np.array([sparsify(record(i % 60, resolution), rng).valid.mean() for i in range(600)])
    assert 0.03 < density.mean() <= 0.10
    assert 0.02 < np.mean(density == 0) < 0.15  # whole maps go missing, but not many


def test_uniform_is_uniform():
    one = plain()
    total = np.sum([PATTERNS["uniform"](one, np.random.default_rng(i)) for i in range(400)], axis=0)
    left, right = total[:, :28].sum(), total[:, 28:].sum()
    assert abs(left - right) < 0.05 * (left + right)
    shares = [PATTERNS["uniform"](one, np.random.default_rng(i)).mean() for i in range(100)]
    assert 0.009 < min(shares) < 0.03 and 0.11 < max(shares) < 0.131


def test_lidar_leaves_the_upper_image_empty_and_lines_with_gaps_below():
    for seed in range(40):
        mask = PATTERNS["lidar"](plain(64, 64), np.random.default_rng(seed))
        assert not mask[:22].any()
        lower = mask[40:]
        assert lower.any()
        # Upright neighbors are rarely both hit: that is what makes it lines.
        assert np.mean(lower[1:] & lower[:-1]) < 0.3 * lower.mean()


def test_lidar_rings_are_straight_in_a_long_lens_and_bend_in_a_wide_one():
    untouched = {}
    for focal in (20, 400):
        lens = np.array([[focal, 0, 31.5], [0, focal, 31.5], [0, 0, 1]], np.float32)
        masks = [
            PATTERNS["lidar"](plain(64, 64, lens), np.random.default_rng(seed))
            for seed in range(30)
        ]
        # Lines of equal elevation cross many rows of a wide view, and few of a narrow one (the
        # sensor leans a little).
        untouched[focal] = np.mean([~mask[36:].any(axis=1) for mask in masks])
    assert untouched[20] < 0.05
    assert untouched[400] > untouched[20] + 0.1


def test_sfm_points_lie_on_the_texture():
    better = []
    for index in range(25):
        one = record(index, 64)
        gray = one.image.astype(float).mean(axis=2)
        strength = np.hypot(*np.gradient(gray))
        mask = PATTERNS["sfm"](one, np.random.default_rng(index))
        better.append(strength[mask].mean() / strength[one.valid].mean())
    assert np.median(better) > 2


def test_sfm_points_follow_the_only_edge_of_a_flat_image():
    one = plain()
    one.image[:, 30:] = 30
    mask = PATTERNS["sfm"](one, np.random.default_rng(0))
    assert mask.any() and not np.any(mask[:, :29]) and not np.any(mask[:, 31:])
    assert not PATTERNS["sfm"](plain(), np.random.default_rng(0)).any()


def test_sensor_has_holes_at_edges_and_far_away():
    far = []
    for index in range(30):
        one = record(index, 64)
        mask = PATTERNS["sensor"](one, np.random.default_rng(index))
        assert not np.any(mask & depth_edges(one.depth, one.valid))
        if mask.any():
            far.append(one.depth[mask].max() / one.depth[one.valid].max())
    assert np.mean(np.array(far) < 0.9) > 0.5


def test_sensor_measures_little_on_black_surfaces():
    one = plain(64, 64)
    one.image[:, 32:] = 5
    masks = np.sum([PATTERNS["sensor"](one, np.random.default_rng(i)) for i in range(50)], axis=0)
    assert masks[:, 32:].sum() < 0.5 * masks[:, :32].sum()


def test_edges_are_where_depth_jumps():
    one = plain()
    one.depth[:, 20:] = 3
    edges = depth_edges(one.depth, one.valid)
    assert edges[:, 19:21].all() and edges.sum() == 2 * 40


def test_sparsify_returns_a_valid_copy():
    one = record(1)
    before = one.depth.copy()
    for seed in range(20):
        thinned = check(sparsify(one, np.random.default_rng(seed)))
        assert (thinned.depth[~thinned.valid] == 0).all()
        np.testing.assert_array_equal(thinned.depth[thinned.valid], one.depth[thinned.valid])
        assert thinned.caption == one.caption and thinned.image is one.image
    np.testing.assert_array_equal(one.depth, before)


def test_weights_choose_the_pattern():
    one = record(1)
    assert not sparsify(one, np.random.default_rng(0), {"missing": 1.0}).valid.any()
    shares = np.mean(
        [
            sparsify(one, np.random.default_rng(i), {"missing": 3, "uniform": 1}).valid.any()
            for i in range(400)
        ]
    )
    assert 0.18 < shares < 0.32


@pytest.mark.parametrize(
    "weights", [{}, {"uniform": 0.0}, {"uniform": -1.0, "sfm": 2.0}, {"uniform": float("nan")}]
)
def test_weights_that_choose_nothing_are_refused(weights: dict[str, float]):
    with pytest.raises(UserError, match="weights"):
        sparsify(record(1), np.random.default_rng(0), weights)


def test_unknown_pattern_is_refused_with_the_known_ones():
    known = "known are dense, uniform, lidar, sfm, sensor, missing"
    with pytest.raises(UserError, match=f"'radar'.*{known}"):
        sparsify(record(1), np.random.default_rng(0), {"radar": 1.0})


def test_dense_keeps_every_valid_pixel():
    one = record(1)
    made = sparsify(one, np.random.default_rng(0), {"dense": 1.0})
    np.testing.assert_array_equal(made.valid, one.valid)
    np.testing.assert_array_equal(made.depth[one.valid], one.depth[one.valid])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_dense_maps(share: float):
    mixture = with_dense(share)
    assert mixture.get("dense", 0.0) == share and sum(mixture.values()) == pytest.approx(1)
    sparse = {name: mixture[name] for name in DEFAULT_MIXTURE}
    assert sparse == pytest.approx({n: (1 - share) * w for n, w in DEFAULT_MIXTURE.items()})


def test_default_mixture_has_every_sparse_pattern():
    assert set(DEFAULT_MIXTURE) == set(PATTERNS) - {"dense"}
    assert sum(DEFAULT_MIXTURE.values()) == pytest.approx(1)
