"""Truncated L1: held against every kink, every pair of samples, and random lines, in float64."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modality_forcing.evaluation.alignment import fit_affine_l1, fit_scale_l1, fit_shift_l1
from modality_forcing.evaluation.truncated import (
    fit_affine_truncated,
    fit_scale_truncated,
    fit_shift_truncated,
)

FITS = {"scale": fit_scale_truncated, "shift": fit_shift_truncated, "affine": fit_affine_truncated}
WHOLE = {"scale": fit_scale_l1, "shift": fit_shift_l1, "affine": fit_affine_l1}


def cost(p, g, w, s, t, bound):
    """In float64, as its definition reads; s and t may be columns."""
    return np.minimum(bound, w * np.abs(s * p + t - g)).sum(axis=-1)


def brute_force(kind: str, p, g, w, bound: float) -> float:
    """The least cost over every kink of one parameter, or every line through two samples or level through one."""
    p, g, w = (x.astype(np.float64)[w > 0] for x in (p, g, w))
    if kind == "affine":
        lines = [
            ((g[i] - g[j]) / (p[i] - p[j]), i)
            for i, j in itertools.combinations(range(len(p)), 2)
            if p[i] != p[j]
        ]
        lines += [(0.0, i) for i in range(len(p))]
        s, i = np.array([s for s, _ in lines])[:, None], np.array([i for _, i in lines])
        return cost(p, g, w, s, g[i][:, None] - s * p[i][:, None], bound).min()
    x, y = (p, g) if kind == "scale" else (np.ones_like(p), g - p)
    x, y, v = x[x != 0], y[x != 0], w[x != 0]
    kinks = np.concatenate([y / x, (y + bound / v) / x, (y - bound / v) / x, [0.0]])[:, None]
    return (
        cost(p, g, w, kinks, 0, bound) if kind == "scale" else cost(p, g, w, 1, kinks, bound)
    ).min()


@st.composite
def samples(draw, most: int):
    n = draw(st.integers(2, most))
    number = st.floats(-8, 8, width=16)
    p, g = (np.array(draw(st.lists(number, min_size=n, max_size=n)), "f4") for _ in range(2))
    w = np.array(
        draw(st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=n, max_size=n)), "f4"
    )
    w[:2] = np.maximum(w[:2], 0.25)
    return p, g, w, draw(st.sampled_from([0.5, 1.0, 4.0]))


def padded(values: np.ndarray, size: int) -> np.ndarray:
    return np.pad(values, (0, size - len(values)))[None]


@pytest.mark.parametrize(("kind", "most"), [("scale", 50), ("shift", 50), ("affine", 24)])
def test_the_cost_is_the_least_there_is(kind: str, most: int):
    solve = jax.jit(FITS[kind], static_argnums=3)

    @settings(max_examples=80, deadline=None)
    @given(samples(most))
    def check(case):
        p, g, w, bound = case
        fit = solve(padded(p, most), padded(g, most), padded(w, most), bound)
        least = brute_force(kind, p, g, w, bound)
        assert bool(fit.ok[0]) and np.isnan(fit.gap[0])
        assert float(fit.loss[0]) == pytest.approx(least, abs=2e-4 * bound, rel=1e-4)
        told = cost(
            *(x.astype("f8") for x in (p, g, w)), float(fit.scale[0]), float(fit.shift[0]), bound
        )
        assert float(fit.loss[0]) == pytest.approx(told, abs=2e-4 * bound, rel=1e-4)

    check()


def scene(n: int = 600, seed: int = 0):
    rng = np.random.default_rng(seed)
    p = rng.gamma(2.0, 1.0, n)
    g = (2.5 * p + 0.7) * np.exp(0.02 * rng.normal(size=n))
    g = np.where(rng.random(n) < 0.3, rng.uniform(0.1, 60, n), g)
    return p.astype("f4"), g.astype("f4"), (1 / g).astype("f4")


def test_outliers_beyond_the_bound_pull_no_more():
    p, g, w = scene()
    fit = fit_affine_truncated(p[None], g[None], w[None], 0.1)
    assert float(fit.scale[0]) == pytest.approx(2.5, rel=0.02) and float(
        fit.shift[0]
    ) == pytest.approx(0.7, rel=0.05)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        s, t = float(fit.scale[0]) * np.exp(0.3 * rng.normal()), float(fit.shift[0]) + rng.normal()
        assert cost(p, g, w, s, t, 0.1) >= float(fit.loss[0]) - 1e-3


@pytest.mark.parametrize("kind", FITS)
def test_a_bound_that_is_never_met_is_the_convex_fit(kind: str):
    p, g, w = scene(200)
    far, whole = FITS[kind](p[None], g[None], w[None], 1e6), WHOLE[kind](p[None], g[None], w[None])
    assert float(far.loss[0]) == pytest.approx(float(whole.loss[0]), rel=1e-5)


@pytest.mark.parametrize("kind", FITS)
def test_unknown_samples_and_neighbours_change_nothing(kind: str):
    p, g, w = scene(100)
    alone = FITS[kind](p[None], g[None], w[None], 0.2)
    dirt = np.full(28, np.nan, "f4")
    p2, g2, w2 = (np.concatenate(x) for x in ((p, dirt), (g, dirt), (w, np.zeros(28, "f4"))))
    batch = FITS[kind](
        np.stack([p2[::-1], p2]), np.stack([g2[::-1], g2]), np.stack([w2[::-1], w2]), 0.2
    )
    np.testing.assert_allclose(batch.loss, np.repeat(alone.loss, 2), rtol=1e-5)


def test_what_cannot_be_fitted_is_defined():
    p, g, w = scene(50)
    constant = fit_affine_truncated(np.full((1, 50), 3, "f4"), g[None], w[None], 0.2)
    best = fit_shift_truncated(np.zeros((1, 50), "f4"), g[None], w[None], 0.2)
    assert float(constant.scale[0]) == 0 and float(constant.loss[0]) == pytest.approx(
        float(best.loss[0]), rel=1e-5
    )
    one = np.where(np.arange(50) == 7, w, 0).astype("f4")
    for solve in FITS.values():
        fit = solve(p[None], g[None], one[None], 0.2)
        assert not fit.ok[0] and (float(fit.scale[0]), float(fit.shift[0])) == (1, 0)
