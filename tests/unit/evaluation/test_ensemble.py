"""The ensemble against plain NumPy and direct minimization, invariances and degenerate cases."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from scipy.optimize import minimize

from modality_forcing.evaluation.ensemble import ensemble, minimize_pair_sum, moments, pair_sum

SIZE = (12, 16)
MODES = ("affine", "scale")
seeds, counts, modes = st.integers(0, 2**31), st.integers(2, 10), st.sampled_from(MODES)


def samples(seed, count, noise=0.1, mode="affine", size=SIZE):
    """Members [e h w] of one random map, each with its own noise, scale and (affine) shift."""
    rng = np.random.default_rng(seed)
    noise = noise * rng.uniform(0.3, 2, (count, 1, 1))
    maps = rng.uniform(1, 2, size) + noise * rng.normal(size=(count, *size))
    maps *= rng.uniform(0.5, 2, (count, 1, 1))
    return np.float32(maps + (rng.uniform(-1, 1, (count, 1, 1)) if mode == "affine" else 0))


def unrelated(seed, count, mode="affine"):
    maps = np.random.default_rng(seed).normal(size=(count, *SIZE)).astype("f4")
    return maps if mode == "affine" else np.abs(maps)


def alike(seed, count, mode="affine"):
    return samples(seed, count, noise=1e-3, mode=mode)


def lower_median(values):
    return np.sort(values, axis=0)[(len(values) - 1) // 2]


def apart(placed):
    """The sum over pairs of root mean squared differences, pixel by pixel."""
    placed = np.asarray(placed, np.float64)
    i, j = np.triu_indices(len(placed), 1)
    return np.sqrt(np.mean((placed[i] - placed[j]) ** 2, axis=(1, 2))).sum()


def placed(members, result):
    """The members in the unit of depth, in double precision."""
    scale, shift = (x[result.used, None, None] for x in (result.scale, result.shift))
    return scale * members[result.used].astype(np.float64) + shift


def unit(members, mode):
    """The members with deviation 1, about their mean or about 0."""
    members = members.astype(np.float64)
    members = members - members.mean(axis=(1, 2), keepdims=True) * (mode == "affine")
    return members / np.sqrt(np.mean(members**2, axis=(1, 2), keepdims=True))


def correlations(members, mode):
    return moments(members.reshape(len(members), -1), centered=mode == "affine")[2]


@settings(max_examples=30)
@given(seeds, counts, modes)
def test_pair_sum_and_gradient_equal_those_over_pixels(seed, count, mode):
    members = samples(seed, count, mode=mode)
    rng = np.random.default_rng(seed)
    cosine, deviations = correlations(members, mode), rng.uniform(-0.5, 2, count)
    offsets = rng.normal(size=count) if mode == "affine" else np.zeros(count)

    def over_pixels(u):
        return apart(u[:, None, None] * unit(members, mode) + offsets[:, None, None])

    total, gradient = pair_sum(deviations, cosine, offsets)
    assert total == pytest.approx(over_pixels(deviations), rel=1e-10)
    steps = 1e-6 * np.eye(count)
    differences = [
        (over_pixels(deviations + h) - over_pixels(deviations - h)) / 2e-6 for h in steps
    ]
    np.testing.assert_allclose(gradient, differences, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("make", [samples, unrelated, alike])
@pytest.mark.parametrize("count", range(2, 11))
def test_pair_sum_equals_direct_minimization(count, make, mode):
    members = make(count, count, mode=mode)
    maps = unit(members, mode)

    def deviations(free):  # the last deviation keeps the mean at 1
        return np.append(free, count - free.sum())[:, None, None]

    starts = np.random.default_rng(count).dirichlet(np.ones(count), 3) * count
    found = [
        minimize(lambda free: apart(deviations(free) * maps), start[:-1], tol=1e-9).fun
        for start in starts
    ]
    best = apart(minimize_pair_sum(correlations(members, mode))[:, None, None] * maps)
    assert best == pytest.approx(min(found), rel=1e-6)
    assert best <= min(found) * (1 + 1e-9)
    # The initial members, each with deviation 1, are not already optimal.
    assert count == 2 or make is alike or apart(maps) > best * (1 + 3e-6)


@settings(max_examples=60)
@given(seeds, counts, modes, st.sampled_from([samples, unrelated, alike]))
def test_no_perturbation_lowers_the_pair_sum(seed, count, mode, make):
    cosine = correlations(make(seed, count, mode=mode), mode)
    deviations = minimize_pair_sum(cosine)
    change = np.random.default_rng(seed).normal(size=count)
    change -= change.mean()
    assert deviations.mean() == pytest.approx(1, abs=1e-12)
    here = pair_sum(deviations, cosine)[0]
    assert all(
        here <= pair_sum(deviations + change * size, cosine)[0] * (1 + 1e-12)
        for size in 10.0 ** -np.arange(7)
    )


@pytest.mark.parametrize("turned", [1, 2, 5])
def test_negated_and_repeated_members_are_minimized(turned):
    maps = unit(samples(turned, 6), "affine")
    maps[:turned] *= -1
    maps[4] = maps[5]
    cosine = maps.reshape(6, -1) @ maps.reshape(6, -1).T / maps[0].size
    sums = pair_sum(minimize_pair_sum(cosine), cosine)[0]

    def direct(u):
        return apart(np.append(u, 6 - u.sum())[:, None, None] * maps)

    starts = np.random.default_rng(0).normal(size=(4, 5))
    found = [minimize(direct, x, method="Powell", tol=1e-12).fun for x in starts]
    assert sums <= min(found) * (1 + 1e-6)


@settings(max_examples=40)
@given(seeds, counts, modes, st.booleans())
def test_result_is_invariant_to_order_scale_and_shift(seed, count, mode, align):
    members = samples(seed, count, mode=mode)
    plain = ensemble(members, mode, align=align)
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    mixed = ensemble(members[order], mode, align=align)
    np.testing.assert_allclose(mixed.depth, plain.depth, atol=1e-5)
    np.testing.assert_allclose(mixed.uncertainty, plain.uncertainty, atol=1e-5)
    np.testing.assert_allclose(mixed.scale, plain.scale[order], rtol=1e-5)
    scale = 10 ** rng.uniform(-2, 2, (count, 1, 1))
    shift = scale * rng.uniform(-3, 3, (count, 1, 1)) if mode == "affine" else 0
    moved = ensemble(members * scale + shift, mode, align=align)
    np.testing.assert_allclose(moved.depth, plain.depth, atol=1e-5)
    np.testing.assert_allclose(moved.uncertainty, plain.uncertainty, atol=1e-5)
    assert moved.loss == pytest.approx(plain.loss, rel=1e-5)


@settings(max_examples=40)
@given(seeds, counts, modes, st.booleans())
def test_result_is_the_median_of_aligned_members(seed, count, mode, align):
    members = samples(seed, count, mode=mode)
    result = ensemble(members, mode, align=align)
    maps = placed(members, result)
    middle = lower_median(maps)
    spread = lower_median(np.abs(maps - middle))
    np.testing.assert_allclose(result.depth, middle, atol=2e-6)
    np.testing.assert_allclose(result.uncertainty, spread, atol=2e-6)
    assert result.depth.max() == 1
    assert (result.depth.min() if mode == "affine" else np.abs(result.shift).max()) == 0
    assert result.loss == pytest.approx(apart(maps), rel=1e-9)
    assert result.used.all()


def test_members_far_from_zero_lose_no_digits():
    members = np.round(samples(11, 5) * 2**12) / 2**12  # exact, with and without 1000
    near, far = ensemble(members), ensemble(members + 1000)
    np.testing.assert_allclose(far.depth, near.depth, atol=1e-6)
    np.testing.assert_allclose(far.uncertainty, near.uncertainty, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_unaligned_members_are_normalized_by_their_own_range(mode):
    members = samples(0, 5, mode=mode)
    maps = placed(members, ensemble(members, mode, align=False))
    least, most = maps.min(axis=(1, 2)), maps.max(axis=(1, 2))
    np.testing.assert_allclose(most, most[0], rtol=1e-6)
    if mode == "affine":
        np.testing.assert_allclose(least, least[0], atol=1e-6)


def test_alignment_beats_normalization_with_outliers():
    target = np.random.default_rng(1).uniform(0, 1, SIZE)
    members = np.float32(target + 0.01 * np.random.default_rng(2).normal(size=(10, *SIZE)))
    for k in range(10):  # every second member has an outlier
        members[k].flat[7 * k] += 2.0 * (k % 2)

    def error(align):
        depth = ensemble(members, align=align).depth.ravel()
        line = np.polyfit(depth, target.ravel(), 1)
        return np.abs(np.polyval(line, depth) - target.ravel()).mean()

    assert error(True) < 0.5 * error(False)


@pytest.mark.parametrize("mode", MODES)
def test_batch_equals_single_ensembles(mode):
    members = np.stack([samples(seed, 4, mode=mode) for seed in range(3)])
    members[1, 2] = np.nan
    batch = ensemble(members, mode)
    for i, one in enumerate(members):
        for ours, alone in zip(batch, ensemble(one, mode), strict=True):
            np.testing.assert_array_equal(ours[i], alone)
    empty = ensemble(members[:0], mode)
    assert [(x.shape[1:], x.dtype) for x in empty] == [(x.shape[1:], x.dtype) for x in batch]
    assert all(len(x) == 0 for x in empty)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_equal_members_have_no_uncertainty(count, mode):
    one = samples(3, 1)[0] + 2
    wanted = (one - one.min()) / (one.max() - one.min()) if mode == "affine" else one / one.max()
    copies = np.stack([one] * count)
    scaled = copies * np.linspace(0.5, 3, count, dtype="f4")[:, None, None]
    for members in (copies, scaled, scaled + np.float32(mode == "affine")):
        result = ensemble(members, mode)
        np.testing.assert_allclose(result.depth, wanted, atol=2e-6)
        np.testing.assert_allclose(result.uncertainty, 0, atol=2e-6)
        assert result.loss < 1e-5


def test_negated_copy_gets_a_negative_scale():
    members = np.stack([samples(4, 1)[0]] * 4)
    members[2] *= -3
    result = ensemble(members)
    np.testing.assert_allclose(result.scale / result.scale[0], [1, 1, -1 / 3, 1], rtol=1e-5)
    np.testing.assert_allclose(result.depth, ensemble(members[:1]).depth, atol=1e-5)


def test_map_and_its_negative_are_finite():
    one = samples(5, 1)[0]
    assert all(np.isfinite(x).all() for x in ensemble(np.stack([one, -one])))


def test_median_of_two_is_the_minimum():
    members = samples(6, 2)
    result = ensemble(members)
    np.testing.assert_allclose(result.depth, placed(members, result).min(axis=0), atol=2e-6)
    assert not result.uncertainty.any()


HOLE = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) == 52


@pytest.mark.parametrize(
    "mode, spoil",
    [
        *((mode, lambda one: np.full_like(one, np.inf)) for mode in MODES),
        *(
            (mode, lambda one, value=value: np.where(HOLE, value, one))
            for mode in MODES
            for value in (np.nan, np.inf, -np.inf)
        ),
        ("affine", lambda one: np.full_like(one, 3.0)),
        ("affine", lambda one: one * np.float32(1e-36)),
        ("scale", lambda one: -np.abs(one)),
        ("scale", np.zeros_like),
    ],
)
def test_unusable_members_are_left_out_and_flagged(mode, spoil):
    members = samples(7, 5, mode=mode)
    without = ensemble(np.delete(members, 2, axis=0), mode)
    members[2] = spoil(members[2])
    result = ensemble(members, mode)
    assert result.used.tolist() == [True, True, False, True, True]
    assert result.scale[2] == result.shift[2] == 0
    for ours, theirs in zip(result[:2], without[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert result.loss == without.loss
    nothing = ensemble(np.stack([members[2]] * 3), mode)
    assert not any(np.any(x) for x in nothing)  # `used` too is False
    assert nothing.depth.shape == nothing.uncertainty.shape == SIZE
    lone = ensemble(members[1:3], mode)
    np.testing.assert_array_equal(lone.depth, ensemble(members[1:2], mode).depth)
    assert not lone.uncertainty.any() and lone.loss == 0


def test_constant_median_has_depth_0():
    spikes = np.zeros((3, *SIZE), np.float32)
    spikes[[0, 1, 2], [0, 1, 2], 0] = 1
    result = ensemble(spikes, "scale")
    assert not result.depth.any()
    assert result.used.all() and np.isfinite(result.scale).all()


def test_constant_member_has_a_scale():
    members = samples(8, 4, mode="scale")
    members[1] = 2.0
    result = ensemble(members, "scale")
    assert result.used.all() and result.scale[1] > 0


@pytest.mark.parametrize(
    "size, most, rows, cols",
    [
        ((12, 16), 8, [1, 3, 5, 7, 9, 11], [1, 3, 5, 7, 9, 11, 13, 15]),
        ((10, 16), 6, [1, 5, 8], [1, 4, 6, 9, 12, 14]),
    ],
)
@pytest.mark.parametrize("align", [True, False])
def test_large_maps_are_aligned_on_a_subsample(size, most, rows, cols, align):
    members = samples(9, 4, size=size)
    few = ensemble(members, align=align, max_side=most)
    by_hand = ensemble(members[:, np.array(rows)[:, None], cols], align=align)
    full = ensemble(members, align=align, max_side=16)
    np.testing.assert_allclose(
        few.scale / few.scale[0], by_hand.scale / by_hand.scale[0], rtol=1e-9
    )
    assert np.abs(few.scale / few.scale[0] - full.scale / full.scale[0]).max() > 1e-3
    np.testing.assert_allclose(few.depth, lower_median(placed(members, few)), atol=2e-6)
    assert few.depth.shape == size and few.depth.min() == 0 and few.depth.max() == 1


def test_nonfinite_pixel_outside_the_subsample_counts():
    members = samples(12, 4)
    members[1, 0, 0] = np.nan
    assert ensemble(members, max_side=8).used.tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "shape, options",
    [
        *((shape, {}) for shape in ((4, 5), (1, 1, 2, 4, 5), (0, 4, 5), (2, 0, 5), (3, 2, 4, 0))),
        ((2, 4, 5), {"mode": "shift"}),
    ],
)
def test_invalid_arguments_are_refused(shape, options, unchecked):
    with pytest.raises(ValueError, match=r"ensemble has shape|is not affine or scale"):
        ensemble(np.ones(shape, np.float32), **options)


def test_fields_keep_their_types():
    result = ensemble(samples(10, 3).astype(np.float64))
    assert [x.dtype.str[1:] for x in result] == ["f4", "f4", "f8", "f8", "f8", "b1"]
    assert all(isinstance(x, np.ndarray) for x in result)
