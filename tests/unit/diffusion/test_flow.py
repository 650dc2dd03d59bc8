"""The flow: where the path starts and ends, what is unknown stays noise, and the two predictions are one velocity."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.diffusion.flow import T_MIN, corrupt, from_velocity, to_velocity, to_x0

LEVELS = st.floats(0.0, 1.0)


def pair(seed: int = 0, shape=(3, 4, 5)) -> tuple[jax.Array, jax.Array]:
    x0, eps = jax.random.normal(jax.random.key(seed), (2, *shape))
    return x0, eps


def test_the_path_runs_from_data_to_noise():
    x0, eps = pair()
    everything = jnp.ones(x0.shape, bool)
    np.testing.assert_array_equal(corrupt(x0, eps, jnp.zeros(3), everything), x0)
    np.testing.assert_array_equal(corrupt(x0, eps, jnp.ones(3), everything), eps)
    np.testing.assert_allclose(
        corrupt(x0, eps, jnp.full(3, 0.25), everything), 0.75 * x0 + 0.25 * eps, rtol=1e-6
    )


def test_each_example_has_its_own_level():
    x0, eps = pair()
    x_t = corrupt(x0, eps, jnp.array([0.0, 0.5, 1.0]), jnp.ones(x0.shape, bool))
    np.testing.assert_array_equal(x_t[0], x0[0])
    np.testing.assert_allclose(x_t[1], (x0[1] + eps[1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(x_t[2], eps[2])


@given(t=LEVELS, fill=st.sampled_from([0.0, 1e30, np.nan, np.inf]))
def test_what_was_not_observed_is_pure_noise_at_any_level(t, fill):
    x0, eps = pair()
    observed = jax.random.bernoulli(jax.random.key(1), 0.5, x0.shape)
    filled = jnp.where(observed, x0, fill)
    x_t = corrupt(filled, eps, jnp.full(3, t), observed)
    np.testing.assert_array_equal(x_t[~observed], eps[~observed])
    np.testing.assert_array_equal(x_t, corrupt(x0, eps, jnp.full(3, t), observed))


def test_an_unknown_fill_reaches_no_gradient():
    x0, eps = pair()
    observed = jax.random.bernoulli(jax.random.key(1), 0.5, x0.shape)
    grad = jax.grad(
        lambda e: jnp.sum(corrupt(jnp.where(observed, x0, jnp.nan), e, jnp.full(3, 0.3), observed))
    )(eps)
    np.testing.assert_allclose(grad, jnp.where(observed, 0.3, 1.0), rtol=1e-6)


@pytest.mark.parametrize("kind", ["x", "v"])
@given(t=st.floats(T_MIN, 1.0))
def test_the_truth_predicted_either_way_is_the_velocity_and_the_data(kind, t):
    x0, eps = pair()
    level = jnp.full(3, t)
    x_t = corrupt(x0, eps, level, jnp.ones(x0.shape, bool))
    truth = x0 if kind == "x" else x0 - eps
    np.testing.assert_allclose(to_velocity(truth, x_t, level, kind), x0 - eps, atol=2e-5)
    np.testing.assert_allclose(to_x0(truth, x_t, level, kind), x0, atol=2e-6)


@pytest.mark.parametrize("kind", ["x", "v"])
@given(t=LEVELS, t_min=st.floats(0.01, 0.5))
def test_from_velocity_inverts_to_velocity(kind, t, t_min):
    y, x_t = pair()
    level = jnp.full(3, t)
    velocity = to_velocity(y, x_t, level, kind, t_min)
    np.testing.assert_allclose(from_velocity(velocity, x_t, level, kind, t_min), y, atol=1e-5)


def test_the_clamp_bounds_the_velocity_near_the_data():
    y, x_t = pair()
    for t in (0.0, 0.01, 0.3):
        np.testing.assert_allclose(
            to_velocity(y, x_t, jnp.full(3, t), "x", 0.3), (y - x_t) / 0.3, rtol=1e-6
        )
    np.testing.assert_allclose(
        to_velocity(y, x_t, jnp.full(3, 0.6), "x", 0.3), (y - x_t) / 0.6, rtol=1e-6
    )
    assert T_MIN == 0.05
