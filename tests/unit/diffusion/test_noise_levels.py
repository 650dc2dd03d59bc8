"""Noise levels: the plateau against published numbers, the shift, the task mix."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.diffusion import noise_levels, rng
from modality_forcing.diffusion.noise_levels import (
    LogitNormal,
    PlateauLogitNormal,
    sample_timesteps,
    timestep_shift,
)

# mu, mode t*, p_ln(t*), P_ln(t*), Z, mass of the plateau, E[t], for the shifts of FLUX.2's report.
PUBLISHED = [
    (0.0, 0.500000, 1.595769, 0.500000, 1.297885, 0.6148, 0.5863),
    (math.log(1.78), 0.743307, 1.857414, 0.686734, 1.163519, 0.4098, 0.6627),
    (math.log(2.95), 0.857843, 2.532273, 0.762908, 1.122887, 0.3206, 0.7392),
    (1.1, 0.860745, 2.565599, 0.764696, 1.121969, 0.3184, 0.7419),
    (math.log(4.63), 0.913727, 3.593691, 0.796010, 1.106050, 0.2803, 0.8022),
    (math.log(6.93), 0.943946, 5.083551, 0.812701, 1.097654, 0.2596, 0.8503),
]
MU, SIGMA = st.floats(-2.0, 2.5), st.floats(0.4, 2.0)


def base_density(t: np.ndarray, mu: float, sigma: float) -> np.ndarray:
    z = (np.log(t / (1 - t)) - mu) / sigma
    return np.exp(-z * z / 2) / (sigma * math.sqrt(2 * math.pi) * t * (1 - t))


def normal_cdf(z: np.ndarray) -> np.ndarray:
    return np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in np.ravel(z)])


def stratified(n: int) -> np.ndarray:
    return (np.arange(n) + 0.5) / n


@pytest.mark.parametrize(("mu", "mode", "density", "below", "z", "plateau", "mean"), PUBLISHED)
def test_plateau_against_published_numbers(mu, mode, density, below, z, plateau, mean):
    levels = PlateauLogitNormal(mu)
    assert levels.mode == pytest.approx(mode, abs=1e-6)
    assert levels.density_at_mode == pytest.approx(density, abs=1e-6)
    assert levels.mass_below_mode == pytest.approx(below, abs=1e-6)
    assert levels.normalizer == pytest.approx(z, abs=1e-6)
    assert (1 - levels.mode) * levels.density_at_mode / levels.normalizer == pytest.approx(
        plateau, abs=5.1e-5
    )
    t = np.asarray(levels.icdf(jnp.asarray(stratified(100_000), jnp.float32)), np.float64)
    assert np.mean(t > mode) == pytest.approx(plateau, abs=7e-5)
    assert t.mean() == pytest.approx(mean, abs=7e-5)


@pytest.mark.parametrize("mu", [0.0, 1.1])
def test_plateau_samples_follow_the_closed_form(mu):
    mode, density, _below, z = next(row[1:5] for row in PUBLISHED if row[0] == mu)
    n = 100_000
    t = np.sort(
        np.asarray(PlateauLogitNormal(mu).icdf(jnp.asarray(stratified(n), jnp.float32)), np.float64)
    )
    inside = np.clip(t, 1e-12, 1 - 1e-12)
    rising = normal_cdf(np.log(inside / (1 - inside)) - mu) / z
    exact = np.where(t < mode, rising, 1 - (1 - t) * density / z)
    # 1 / (2 n) is the least that n points can do.
    assert np.max(np.abs(exact - stratified(n))) < 2e-5


@given(mu=MU, sigma=SIGMA)
def test_mode_is_the_densest_point(mu, sigma):
    levels = PlateauLogitNormal(mu, sigma)
    grid = np.linspace(1e-4, 1 - 1e-4, 20_001)
    assert levels.density_at_mode >= base_density(grid, mu, sigma).max() * (1 - 1e-9)
    assert levels.density_at_mode == pytest.approx(base_density(np.float64(levels.mode), mu, sigma))
    logit = math.log(levels.mode / (1 - levels.mode))
    assert logit == pytest.approx(mu + sigma**2 * (2 * levels.mode - 1), abs=1e-6)


@pytest.mark.parametrize("mu", [-0.3, 0.3])
def test_mode_is_the_densest_of_several(mu):
    # sigma^2 = 2.25: a maximum on either side of 1/2, of which the shift decides.
    assert (PlateauLogitNormal(mu, 1.5).mode > 0.5) == (mu > 0)


@pytest.mark.parametrize("kind", [LogitNormal, PlateauLogitNormal])
@given(mu=MU, sigma=st.floats(0.4, 1.4), u=st.floats(1e-3, 1 - 1e-3))
def test_cdf_inverts_icdf(kind, mu, sigma, u):
    levels = kind(mu, sigma)
    assert float(levels.cdf(levels.icdf(jnp.float32(u)))) == pytest.approx(u, abs=2e-4)


@pytest.mark.parametrize("kind", [LogitNormal, PlateauLogitNormal])
@given(mu=st.floats(-1.0, 1.5), t=st.floats(0.02, 0.98))
def test_icdf_inverts_cdf(kind, mu, t):
    levels = kind(mu)
    assert float(levels.icdf(levels.cdf(jnp.float32(t)))) == pytest.approx(t, abs=2e-4)


@pytest.mark.parametrize(
    "levels", [LogitNormal(1.1), LogitNormal(-1.0, 2.0), PlateauLogitNormal(1.1)]
)
def test_icdf_is_increasing_within_0_and_1(levels):
    u = jnp.concatenate(
        [jnp.array([1e-6]), jnp.asarray(stratified(1000), jnp.float32), jnp.array([1 - 1e-6])]
    )
    t = np.asarray(levels.icdf(u))
    assert np.all(np.diff(t) >= 0) and t[0] > 0 and t[-1] <= 1 and np.all(np.isfinite(t))


def test_logit_normal_has_its_median_and_spread():
    t = LogitNormal(1.1, 0.5).icdf(jnp.array([0.158655, 0.5, 0.841345]))
    np.testing.assert_allclose(np.log(t / (1 - t)), [0.6, 1.1, 1.6], atol=1e-4)


@pytest.mark.parametrize("kind", [LogitNormal, PlateauLogitNormal])
@pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
def test_sigma_must_be_positive(kind, sigma):
    with pytest.raises(ValueError, match="sigma"):
        kind(0.0, sigma)


@given(t=st.floats(0.001, 0.999), mu=st.floats(-2, 2), nu=st.floats(-2, 2))
def test_shifts_add_up(t, mu, nu):
    np.testing.assert_allclose(
        timestep_shift(timestep_shift(jnp.float32(t), mu), nu),
        timestep_shift(jnp.float32(t), mu + nu),
        rtol=2e-5,
    )


def test_shift_keeps_the_ends_and_moves_logits():
    np.testing.assert_array_equal(timestep_shift(jnp.array([0.0, 1.0]), 1.1), [0.0, 1.0])
    t = timestep_shift(jnp.array([0.2, 0.5, 0.8]), 1.1)
    np.testing.assert_allclose(np.log(t / (1 - t)), np.log([0.25, 1, 4]) + 1.1, rtol=1e-5)


def test_shift_adds_to_the_mean_of_a_logit_normal():
    u = jnp.asarray(stratified(100), jnp.float32)
    np.testing.assert_allclose(
        timestep_shift(LogitNormal(0.3).icdf(u), 0.8), LogitNormal(1.1).icdf(u), rtol=1e-5
    )


N = 40_000
MODALITIES = {"image": LogitNormal(1.1), "depth": PlateauLogitNormal(1.1)}


@pytest.fixture(scope="module")
def sampled() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    keys = rng.per_example(rng.named_key(0, "levels", 0), jnp.arange(N))
    return jax.tree.map(
        np.asarray, sample_timesteps(keys, MODALITIES, {"image": 0.2, "depth": 0.2})
    )


def test_at_most_one_modality_is_the_condition_with_its_probability(sampled):
    _, is_cond = sampled
    assert not np.any(is_cond["image"] & is_cond["depth"])
    for name in MODALITIES:
        assert is_cond[name].mean() == pytest.approx(0.2, abs=4 * math.sqrt(0.16 / N))


def test_conditions_and_only_they_are_clean(sampled):
    t, is_cond = sampled
    for name in MODALITIES:
        np.testing.assert_array_equal(t[name] == 0.0, is_cond[name])


def test_levels_of_two_modalities_are_independent(sampled):
    t, is_cond = sampled
    joint = ~is_cond["image"] & ~is_cond["depth"]
    u = {n: np.asarray(MODALITIES[n].cdf(jnp.asarray(t[n][joint]))) for n in MODALITIES}
    bound = 4 / math.sqrt(joint.sum())
    assert abs(np.corrcoef(u["image"], u["depth"])[0, 1]) < bound
    assert abs(np.corrcoef(np.abs(u["image"] - 0.5), np.abs(u["depth"] - 0.5))[0, 1]) < bound


@pytest.mark.parametrize("name", list(MODALITIES))
def test_levels_follow_their_distribution_in_every_task(sampled, name):
    t, is_cond = sampled
    other = next(n for n in MODALITIES if n != name)
    for task in (~is_cond[name], ~is_cond[name] & is_cond[other]):
        u = np.sort(np.asarray(MODALITIES[name].cdf(jnp.asarray(t[name][task]))))
        distance = np.max(np.abs(u - stratified(len(u))))
        assert distance < 2.0 / math.sqrt(len(u))  # Kolmogorov-Smirnov, p = 0.0007


def test_levels_do_not_depend_on_the_position_in_the_batch(sampled):
    t, is_cond = sampled
    order = np.random.default_rng(0).permutation(100)
    keys = rng.per_example(rng.named_key(0, "levels", 0), jnp.asarray(order))
    t_again, is_cond_again = sample_timesteps(keys, MODALITIES, {"image": 0.2, "depth": 0.2})
    for name in MODALITIES:
        np.testing.assert_array_equal(t_again[name], t[name][order])
        np.testing.assert_array_equal(is_cond_again[name], is_cond[name][order])


def test_levels_differ_per_example(sampled):
    t, is_cond = sampled
    for name in MODALITIES:
        free = t[name][:1000][~is_cond[name][:1000]]
        assert len(np.unique(free)) > 0.99 * len(free)


def test_single_modality_is_never_the_condition():
    keys = rng.per_example(rng.named_key(0, "levels", 0), jnp.arange(500))
    t, is_cond = sample_timesteps(keys, {"image": LogitNormal()}, {"image": 0.0})
    assert not np.any(is_cond["image"]) and np.all(t["image"] > 0)


def test_condition_of_probability_1_leaves_the_other_noisy():
    keys = rng.per_example(rng.named_key(0, "levels", 0), jnp.arange(500))
    t, is_cond = sample_timesteps(keys, MODALITIES, {"image": 1.0, "depth": 0.0})
    assert np.all(is_cond["image"]) and np.all(t["image"] == 0) and np.all(t["depth"] > 0)


@pytest.mark.parametrize("distribution", [LogitNormal(1.1), PlateauLogitNormal(0.5)])
def test_training_hardly_looks_below_the_least_level(distribution):
    least = noise_levels.least_level(distribution)
    assert 0.04 < least < 0.09
    levels = np.asarray(distribution.icdf((jnp.arange(100_000) + 0.5) / 100_000))
    assert (levels < least).mean() == pytest.approx(2e-4, rel=0.06)


def test_distributions_satisfy_the_protocol():
    levels: list[noise_levels.NoiseDistribution] = [LogitNormal(), PlateauLogitNormal()]
    assert all(float(level.cdf(jnp.float32(1.0))) == 1.0 for level in levels)


def test_conditions_of_several_modalities_leave_those_of_one_as_they_are(sampled):
    keys = rng.per_example(rng.named_key(0, "levels", 0), jnp.arange(N))
    both = {("image", "depth"): 0.3}
    t, is_cond = sample_timesteps(keys, MODALITIES, {"image": 0.2, "depth": 0.2}, both)
    several = np.asarray(is_cond["image"] & is_cond["depth"])
    assert several.mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / N))
    for name in MODALITIES:
        np.testing.assert_array_equal(
            np.asarray(is_cond[name])[~several], sampled[1][name][~several]
        )
        expected = np.where(several, 0.0, sampled[0][name])
        np.testing.assert_array_equal(t[name], expected)
