"""The flow: end points of the path, noise in unobserved values, x- and v-prediction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modality_forcing.diffusion.flow import T_MIN, add_noise, to_velocity, to_x0


def pair(seed: int = 0, shape=(3, 4, 5)) -> tuple[jax.Array, jax.Array]:
    x0, eps = jax.random.normal(jax.random.key(seed), (2, *shape))
    return x0, eps


def test_path_runs_from_data_to_noise():
    x0, eps = pair()
    everywhere = jnp.ones(x0.shape, bool)
    np.testing.assert_array_equal(add_noise(x0, eps, jnp.zeros(3), everywhere), x0)
    np.testing.assert_array_equal(add_noise(x0, eps, jnp.ones(3), everywhere), eps)
    np.testing.assert_allclose(
        add_noise(x0, eps, jnp.full(3, 0.25), everywhere), 0.75 * x0 + 0.25 * eps, rtol=1e-6
    )


def test_each_example_has_its_own_level():
    x0, eps = pair()
    x_t = add_noise(x0, eps, jnp.array([0.0, 0.5, 1.0]), jnp.ones(x0.shape, bool))
    np.testing.assert_array_equal(x_t[0], x0[0])
    np.testing.assert_allclose(x_t[1], (x0[1] + eps[1]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(x_t[2], eps[2])


@given(t=st.floats(0.0, 1.0), fill=st.sampled_from([0.0, 1e30, np.nan, np.inf]))
def test_unobserved_values_are_pure_noise_at_any_level(t, fill):
    x0, eps = pair()
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, x0.shape)
    filled = jnp.where(mask, x0, fill)
    x_t = add_noise(filled, eps, jnp.full(3, t), mask)
    np.testing.assert_array_equal(x_t[~mask], eps[~mask])
    np.testing.assert_array_equal(x_t, add_noise(x0, eps, jnp.full(3, t), mask))


def test_fill_of_unobserved_values_has_no_gradient():
    x0, eps = pair()
    mask = jax.random.bernoulli(jax.random.key(1), 0.5, x0.shape)
    grad = jax.grad(
        lambda e: jnp.sum(add_noise(jnp.where(mask, x0, jnp.nan), e, jnp.full(3, 0.3), mask))
    )(eps)
    np.testing.assert_allclose(grad, jnp.where(mask, 0.3, 1.0), rtol=1e-6)


@pytest.mark.parametrize("prediction_type", ["x", "v"])
@given(t=st.floats(T_MIN, 1.0))
def test_exact_predictions_give_the_velocity_and_the_data(prediction_type, t):
    x0, eps = pair()
    level = jnp.full(3, t)
    x_t = add_noise(x0, eps, level, jnp.ones(x0.shape, bool))
    truth = x0 if prediction_type == "x" else x0 - eps
    np.testing.assert_allclose(to_velocity(truth, x_t, level, prediction_type), x0 - eps, atol=2e-5)
    np.testing.assert_allclose(to_x0(truth, x_t, level, prediction_type), x0, atol=2e-6)


def test_t_min_bounds_the_velocity_near_the_data():
    y, x_t = pair()
    for t in (0.0, 0.01, 0.3):
        np.testing.assert_allclose(
            to_velocity(y, x_t, jnp.full(3, t), "x", t_min=0.3), (y - x_t) / 0.3, rtol=1e-6
        )
    np.testing.assert_allclose(
        to_velocity(y, x_t, jnp.full(3, 0.6), "x", t_min=0.3), (y - x_t) / 0.6, rtol=1e-6
    )
    assert T_MIN == 0.05
