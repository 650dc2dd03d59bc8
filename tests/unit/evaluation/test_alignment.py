"""Alignments against brute force over all pairs of samples, and degenerate cases."""

from __future__ import annotations

from types import SimpleNamespace

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from modality_forcing.evaluation.alignment import (
    align_affine_l1,
    align_affine_l2,
    align_scale_l1,
    weighted_median,
)

N = 24
l1, l2, scale_l1 = jax.jit(align_affine_l1), jax.jit(align_affine_l2), jax.jit(align_scale_l1)
median = jax.jit(weighted_median)


def one(solve, pred, target, weight):
    """The alignment of one image, as floats."""
    aligned = solve(*(np.asarray(x, np.float32)[None] for x in (pred, target, weight)))
    values = aligned._asdict() | {"shift": aligned.shift}
    return SimpleNamespace(**{name: x[0].item() for name, x in values.items()})


def loss(scale, shift, pred, target, weight):
    """The objective in double precision, for arrays of scales and shifts."""
    pred, target, weight = (np.asarray(x, np.float64) for x in (pred, target, weight))
    rest = np.multiply.outer(scale, pred) + np.asarray(shift)[..., None] - target
    return np.sum(weight * np.abs(rest), axis=-1)


def brute_force(pred, target, weight):
    """Returns the smallest loss over all lines through two samples and flat lines through one."""
    keep = np.asarray(weight) > 0
    p, g, w = (np.asarray(x, np.float64)[keep] for x in (pred, target, weight))
    i, j = np.triu_indices(len(p), 1)
    run = p[j] - p[i]
    scale = np.where(run == 0, 0, (g[j] - g[i]) / np.where(run == 0, 1, run))
    scale, shift = np.append(scale, np.zeros(len(g))), np.append(g[i] - scale * p[i], g)
    return loss(scale, shift, p, g, w).min()


def flat_loss(target, weight):
    return brute_force(np.zeros_like(target), target, weight)


def scene(seed, n=N, outliers=0.2, slope=2.5):
    rng = np.random.default_rng(seed)
    pred = rng.gamma(2.0, 1.0, n)
    target = np.abs(slope * pred + 0.7) * np.exp(0.2 * rng.normal(size=n)) + 0.05
    target = np.where(rng.random(n) < outliers, rng.uniform(0.1, 30, n), target)
    return pred.astype("f4"), target.astype("f4"), (1 / target).astype("f4")


# Multiples of 1/8 make ties and samples on one line common; there vertices are degenerate.
grid = st.integers(-24, 24).map(lambda x: x / 8)
free = st.floats(-50, 50, width=32).map(lambda x: 0.0 if abs(x) < 1e-3 else x)
samples = st.integers(2, 50).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, n, elements=st.one_of(grid, free)),
        hnp.arrays(np.float32, n, elements=st.one_of(grid, free)).map(
            lambda x: np.abs(x) + np.float32(0.125)
        ),
        hnp.arrays(bool, n),
    )
)


@settings(max_examples=200, deadline=None)
@given(samples)
def test_affine_l1_is_the_optimum_of_brute_force(case):
    pred, target, valid = case
    valid = valid | (np.arange(len(valid)) < 2)
    weight = np.where(valid, 1 / target, 0).astype("f4")
    # One shape, one compilation.
    padded = [np.pad(x, (0, 50 - len(x))) for x in (pred, target, weight)]
    aligned = one(l1, *padded)
    best = brute_force(pred, target, weight)
    # Six digits of the loss, or, for nearly perfect alignment, of the loss of a constant.
    slack = 1e-6 * best + 1e-6 * flat_loss(target, weight) + 1e-6 * np.sum(weight * target)
    # Rounding the optimum's parameters to float32 loses this much (a steep line near zero).
    slack += (
        np.finfo(np.float32).eps
        / 2
        * np.sum(weight * (np.abs(aligned.scale * pred) + np.abs(aligned.shift)))
    )
    assert aligned.ok
    assert loss(aligned.scale, aligned.shift, pred, target, weight) <= best + slack
    assert aligned.loss == pytest.approx(best, abs=slack)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.floats(-1, 1), st.floats(-1, 1))
def test_affine_l1_is_not_above_any_perturbation(seed, ds, dt):
    case = scene(seed)
    aligned = one(l1, *case)
    here = loss(aligned.scale, aligned.shift, *case)
    size = 10.0 ** -np.arange(6)
    assert here <= np.min(loss(aligned.scale + ds * size, aligned.shift + dt * size, *case)) * (
        1 + 1e-6
    )


@pytest.mark.parametrize("seed", range(8))
def test_affine_l1_reaches_six_digits_on_scenes(seed):
    pred, target, weight = scene(seed, n=50)
    aligned = one(l1, pred, target, weight)
    best = brute_force(pred, target, weight)
    assert loss(aligned.scale, aligned.shift, pred, target, weight) == pytest.approx(best, rel=1e-6)
    assert 0 <= aligned.optimality_gap <= 1e-6 * best


def test_sign_flipped_prediction_gets_the_negative_scale():
    pred, target, weight = scene(3)
    aligned, flipped = one(l1, pred, target, weight), one(l1, -pred, target, weight)
    assert aligned.scale > 0
    assert flipped.scale == pytest.approx(-aligned.scale, rel=1e-4)
    assert flipped.loss == pytest.approx(aligned.loss, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([1e-3, 1.0, 1e3]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_affine_l1_does_not_depend_on_units(seed, pred_unit, truth_unit):
    pred, target, _ = scene(seed)
    plain = one(l1, pred, target, 1 / target)
    scaled = one(l1, pred * pred_unit, target * truth_unit, 1 / (target * truth_unit))
    assert scaled.loss == pytest.approx(plain.loss, rel=1e-5)


@pytest.mark.parametrize("solve", [l1, l2, scale_l1])
def test_zero_weight_has_no_influence(solve):
    pred, target, weight = scene(5)
    plain = one(solve, *(np.append(x, [0, 0]) for x in (pred, target, weight)))
    trash = one(
        solve,
        np.append(pred, [np.nan, 1e30]),
        np.append(target, [np.inf, -7]),
        np.append(weight, [0, 0]),
    )
    assert trash == plain


@pytest.mark.parametrize("solve", [l1, l2, scale_l1])
def test_fewer_than_two_samples_give_identity_and_are_flagged(solve):
    pred, target, weight = scene(6)
    for count in (0, 1):
        aligned = one(solve, pred, target, np.where(np.arange(N) < count, weight, 0))
        assert (aligned.scale, aligned.shift, aligned.ok) == (1.0, 0.0, False)
    assert one(solve, pred, target, np.where(np.arange(N) < 2, weight, 0)).ok


def test_constant_prediction_gets_the_weighted_median():
    _, target, weight = scene(7)
    aligned = one(l1, np.full(N, 3.0), target, weight)
    assert aligned.ok
    assert aligned.scale == 0
    assert loss(0, aligned.shift, np.zeros(N), target, weight) == pytest.approx(
        flat_loss(target, weight), rel=1e-6
    )
    assert one(l2, np.full(N, 3.0), target, weight).scale == 0


def test_constant_target_is_aligned_exactly():
    pred, _, _ = scene(8)
    aligned = one(l1, pred, np.full(N, 4.0), np.full(N, 0.25))
    assert (aligned.scale, aligned.shift, aligned.loss) == (0.0, 4.0, 0.0)


def test_perfect_prediction_is_recovered_under_outliers():
    pred, _, _ = scene(9)
    target = 2.5 * pred + 0.7
    target[:8] = 30.0
    aligned = one(l1, pred, target, 1 / target)
    assert (aligned.scale, aligned.shift) == (
        pytest.approx(2.5, rel=1e-5),
        pytest.approx(0.7, rel=1e-5),
    )


def test_images_of_a_batch_do_not_mix():
    cases = [scene(seed) for seed in range(6)]
    together = l1(*(np.stack(column) for column in zip(*cases, strict=True)))
    for i, case in enumerate(cases):
        alone = one(l1, *case)
        assert together.scale[i] == pytest.approx(alone.scale, rel=1e-5)
        assert together.loss[i] == pytest.approx(alone.loss, rel=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(np.float32, 9, elements=grid), hnp.arrays(np.float32, 9, elements=st.integers(0, 5))
)
def test_weighted_median_against_a_sort(values, weight):
    weight[4] += 1
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weight[order]) >= weight.sum() / 2
    assert float(median(values, weight)) == values[order][np.argmax(reached)]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_scale_l1_is_the_best_ratio(seed):
    pred, target, weight = scene(seed)
    aligned = one(scale_l1, pred, target, weight)
    assert loss(aligned.scale, 0.0, pred, target, weight) == pytest.approx(
        loss(target / pred, np.zeros(N), pred, target, weight).min(), rel=1e-6
    )
    assert aligned.shift == 0


def test_scale_l1_of_a_zero_prediction_is_zero():
    _, target, weight = scene(1)
    assert one(scale_l1, np.zeros(N), target, weight).scale == 0


@pytest.mark.parametrize("seed", range(4))
def test_least_squares_against_numpy(seed):
    pred, target, weight = scene(seed)
    root = np.sqrt(weight.astype(np.float64))
    (scale, shift), rest, *_ = np.linalg.lstsq(
        np.stack([pred, np.ones(N)], 1) * root[:, None], target * root, rcond=None
    )
    aligned = one(l2, pred, target, weight)
    assert (aligned.scale, aligned.shift) == (
        pytest.approx(scale, rel=1e-4),
        pytest.approx(shift, rel=1e-3, abs=1e-4),
    )
    assert aligned.loss == pytest.approx(rest[0], rel=1e-5)
