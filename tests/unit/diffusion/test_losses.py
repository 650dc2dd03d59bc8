"""The losses: exactly zero, gradient included, for unobserved values and conditions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.diffusion.flow import NoisyTokens, add_noise, to_velocity
from modality_forcing.diffusion.losses import distillation_loss, masked_mean, velocity_loss

SHAPE = (4, 6, 5)
T = jnp.array([0.02, 0.3, 0.7, 1.0])
NO_COND = jnp.zeros(4, bool)
PREDICTION, X0, EPS = jax.random.normal(jax.random.key(0), (3, *SHAPE))
MASK = jax.random.bernoulli(jax.random.key(1), 0.4, SHAPE)
TOKENS = NoisyTokens(X0, MASK, EPS, T, add_noise(X0, EPS, T, MASK), NO_COND)

both_types = pytest.mark.parametrize("prediction_type", ["x", "v"])


def value_and_grad(tokens: NoisyTokens, prediction_type) -> tuple[np.ndarray, np.ndarray]:
    """The loss of each example, and the gradient of their sum with respect to the prediction."""

    def loss(prediction):
        return velocity_loss(prediction, tokens, prediction_type)

    grad = jax.grad(lambda y: loss(y).sum())(PREDICTION)
    return np.asarray(loss(PREDICTION)), np.asarray(grad)


def test_masked_mean_averages_true_positions():
    x, mask = np.asarray(X0, np.float64), np.asarray(MASK)
    expected = [x[i][mask[i]].mean() for i in range(4)]
    np.testing.assert_allclose(masked_mean(X0, MASK), expected, rtol=1e-5)


@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e38])
def test_masked_mean_of_nothing_is_zero_with_zero_gradient(fill):
    values, mask = jnp.full(SHAPE, fill), jnp.zeros(SHAPE, bool)
    np.testing.assert_array_equal(masked_mean(values, mask), np.zeros(4))
    grad = jax.grad(lambda v: masked_mean(v, mask).sum())(values)
    np.testing.assert_array_equal(grad, np.zeros(SHAPE))


def test_masked_mean_sums_in_float32():
    values = jnp.ones((1, 1000, 3), jnp.bfloat16)  # bfloat16 cannot count past 256
    mean = masked_mean(values, jnp.ones(values.shape, bool))
    assert mean.dtype == jnp.float32 and float(mean[0]) == 1.0


@pytest.mark.parametrize("t_min", [0.05, 0.5])
def test_x_prediction_loss_is_squared_error_over_clamped_level_squared(t_min):
    loss = velocity_loss(PREDICTION, TOKENS, "x", t_min=t_min)
    for i in range(4):
        squares = np.square(PREDICTION - X0)[i][MASK[i]]
        expected = squares.mean() / max(float(T[i]), t_min) ** 2
        assert float(loss[i]) == pytest.approx(expected, rel=1e-5)


def test_v_prediction_loss_is_squared_error_of_velocity():
    loss = velocity_loss(PREDICTION, TOKENS, "v")
    for i in range(4):
        squares = np.square(PREDICTION - (X0 - EPS))[i][MASK[i]]
        assert float(loss[i]) == pytest.approx(squares.mean(), rel=1e-5)


def test_both_prediction_types_give_the_same_loss_for_the_same_velocity():
    t, mask = jnp.array([0.1, 0.3, 0.7, 1.0]), jnp.ones(SHAPE, bool)
    tokens = NoisyTokens(X0, mask, EPS, t, add_noise(X0, EPS, t, mask), NO_COND)
    velocity = to_velocity(PREDICTION, tokens.x_t, t, "x")
    np.testing.assert_allclose(
        velocity_loss(PREDICTION, tokens, "x"), velocity_loss(velocity, tokens, "v"), rtol=1e-4
    )


@both_types
def test_masked_values_and_conditions_have_exactly_no_loss_and_no_gradient(prediction_type):
    is_cond = jnp.array([True, False, True, False])
    tokens = TOKENS._replace(t=jnp.where(is_cond, 0.0, T), is_cond=is_cond)
    loss, grad = value_and_grad(tokens, prediction_type)
    np.testing.assert_array_equal(loss[is_cond], [0.0, 0.0])
    scored = np.asarray(MASK & ~is_cond[:, None, None])
    assert np.all(grad[~scored] == 0.0)
    assert np.all(grad[scored] != 0.0)


@both_types
@pytest.mark.parametrize("fill", [np.nan, np.inf, -1e30, 7.0])
def test_fill_of_unobserved_values_changes_no_bit(prediction_type, fill):
    clean = value_and_grad(TOKENS, prediction_type)
    filled = value_and_grad(TOKENS._replace(x0=jnp.where(MASK, X0, fill)), prediction_type)
    jax.tree.map(np.testing.assert_array_equal, clean, filled)
    assert np.all(np.isfinite(clean[1]))


@both_types
def test_example_without_a_valid_value_counts_zero_and_changes_no_other(prediction_type):
    empty = TOKENS._replace(x0=X0.at[1].set(jnp.nan), mask=MASK.at[1].set(False))
    loss, grad = value_and_grad(empty, prediction_type)
    assert loss[1] == 0.0 and np.all(np.isfinite(loss))
    assert np.all(np.isfinite(grad)) and np.all(grad[1] == 0.0)
    whole, _ = value_and_grad(TOKENS, prediction_type)
    np.testing.assert_array_equal(np.delete(loss, 1), np.delete(whole, 1))


def test_bfloat16_predictions_are_scored_in_float32():
    narrow = PREDICTION.astype(jnp.bfloat16)
    loss = velocity_loss(narrow, TOKENS, "x")
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, velocity_loss(narrow.astype(jnp.float32), TOKENS, "x"))


# ---- Self-distillation

STUDENT, TEACHER = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
NONE = jnp.zeros(3, bool)


def test_distillation_weight_runs_from_low_to_high():
    squares = np.mean((np.asarray(STUDENT) - np.asarray(TEACHER)) ** 2, axis=(1, 2))
    t = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(
        distillation_loss(STUDENT, TEACHER, t, NONE), squares * [0.1, 0.325, 1.0], rtol=1e-5
    )
    loss = distillation_loss(STUDENT, TEACHER, t, NONE, high=2.0, low=0.5)
    np.testing.assert_allclose(loss, squares * [0.5, 0.875, 2.0], rtol=1e-5)


def test_equal_velocities_have_no_distillation_loss():
    np.testing.assert_array_equal(
        distillation_loss(STUDENT, STUDENT, jnp.ones(3), NONE), np.zeros(3)
    )


def test_conditions_have_no_distillation_loss_and_no_gradient():
    is_cond = jnp.array([False, True, False])

    def loss(y):
        return distillation_loss(y, TEACHER, jnp.ones(3), is_cond)

    grad = np.asarray(jax.grad(lambda y: loss(y).sum())(STUDENT))
    assert float(loss(STUDENT)[1]) == 0.0 and np.all(grad[1] == 0.0)
    assert np.all(grad[[0, 2]] != 0.0)
