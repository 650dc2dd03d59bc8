"""The masked loss: exactly zero, gradient included, wherever nothing was observed or nothing is to be predicted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modality_forcing.diffusion.flow import corrupt, to_velocity
from modality_forcing.diffusion.losses import masked_mean, velocity_loss

SHAPE = (4, 6, 5)
T = jnp.array([0.02, 0.3, 0.7, 1.0])
NONE_GIVEN = jnp.zeros(4, bool)


@pytest.fixture
def arrays() -> dict[str, jax.Array]:
    y, x0, eps = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    return {
        "prediction": y,
        "x0": x0,
        "eps": eps,
        "observed": jax.random.bernoulli(jax.random.key(1), 0.4, SHAPE),
    }


def test_masked_mean_averages_what_is_observed(arrays):
    x, mask = np.asarray(arrays["x0"], np.float64), np.asarray(arrays["observed"])
    expected = [x[i][mask[i]].mean() for i in range(4)]
    np.testing.assert_allclose(masked_mean(arrays["x0"], arrays["observed"]), expected, rtol=1e-5)


@pytest.mark.parametrize("fill", [np.nan, np.inf, 1e38])
def test_masked_mean_of_nothing_is_zero_with_zero_gradient(fill):
    values = jnp.full(SHAPE, fill)
    mask = jnp.zeros(SHAPE, bool)
    np.testing.assert_array_equal(masked_mean(values, mask), np.zeros(4))
    np.testing.assert_array_equal(
        jax.grad(lambda v: masked_mean(v, mask).sum())(values), np.zeros(SHAPE)
    )


def test_masked_mean_sums_in_float32():
    values = jnp.ones((1, 1000, 3), jnp.bfloat16)  # bfloat16 cannot count past 256
    mean = masked_mean(values, jnp.ones(values.shape, bool))
    assert mean.dtype == jnp.float32 and float(mean[0]) == 1.0


def test_x_prediction_loss_is_the_squared_error_over_the_clamped_level_squared(arrays):
    a = {k: np.asarray(v) for k, v in arrays.items()}
    for t_min in (0.05, 0.5):
        loss = velocity_loss(**arrays, t=T, given=NONE_GIVEN, kind="x", t_min=t_min)
        for i in range(4):
            squares = (a["prediction"][i] - a["x0"][i])[a["observed"][i]] ** 2
            assert float(loss[i]) == pytest.approx(
                squares.mean() / max(float(T[i]), t_min) ** 2, rel=1e-5
            )


def test_v_prediction_loss_is_the_squared_error_of_the_velocity(arrays):
    a = {k: np.asarray(v) for k, v in arrays.items()}
    loss = velocity_loss(**arrays, t=T, given=NONE_GIVEN, kind="v")
    for i in range(4):
        squares = (a["prediction"][i] - (a["x0"][i] - a["eps"][i]))[a["observed"][i]] ** 2
        assert float(loss[i]) == pytest.approx(squares.mean(), rel=1e-5)


def test_both_kinds_are_the_same_loss_of_the_same_velocity(arrays):
    t = jnp.array([0.1, 0.3, 0.7, 1.0])
    everything = jnp.ones(SHAPE, bool)
    x_t = corrupt(arrays["x0"], arrays["eps"], t, everything)
    as_v = to_velocity(arrays["prediction"], x_t, t, "x")
    of = lambda y, kind: velocity_loss(
        y, arrays["x0"], arrays["eps"], t, everything, NONE_GIVEN, kind
    )
    np.testing.assert_allclose(of(arrays["prediction"], "x"), of(as_v, "v"), rtol=1e-4)


@pytest.mark.parametrize("kind", ["x", "v"])
def test_what_is_masked_or_given_has_exactly_no_loss_and_no_gradient(arrays, kind):
    given = jnp.array([True, False, True, False])
    t = jnp.where(given, 0.0, T)

    def total(y):
        return velocity_loss(y, arrays["x0"], arrays["eps"], t, arrays["observed"], given, kind)

    np.testing.assert_array_equal(total(arrays["prediction"])[given], [0.0, 0.0])
    grad = np.asarray(jax.grad(lambda y: total(y).sum())(arrays["prediction"]))
    scored = np.asarray(arrays["observed"] & ~given[:, None, None])
    assert np.all(grad[~scored] == 0.0)
    assert np.all(grad[scored] != 0.0)


@pytest.mark.parametrize("kind", ["x", "v"])
@pytest.mark.parametrize("fill", [np.nan, np.inf, -1e30, 7.0])
def test_the_fill_of_unknown_values_changes_no_bit(arrays, kind, fill):
    def value_and_grad(x0):
        def total(y):
            return velocity_loss(
                y, x0, arrays["eps"], T, arrays["observed"], NONE_GIVEN, kind
            ).sum()

        return jax.value_and_grad(total)(arrays["prediction"])

    clean = value_and_grad(arrays["x0"])
    filled = value_and_grad(jnp.where(arrays["observed"], arrays["x0"], fill))
    jax.tree.map(np.testing.assert_array_equal, clean, filled)
    assert np.all(np.isfinite(clean[1]))


@pytest.mark.parametrize("kind", ["x", "v"])
def test_an_example_without_a_valid_value_counts_zero_and_leaves_the_others_alone(arrays, kind):
    observed = arrays["observed"].at[1].set(False)

    def total(y, mask):
        return velocity_loss(
            y, arrays["x0"].at[1].set(jnp.nan), arrays["eps"], T, mask, NONE_GIVEN, kind
        )

    loss = total(arrays["prediction"], observed)
    assert float(loss[1]) == 0.0 and np.all(np.isfinite(loss))
    grad = jax.grad(lambda y: total(y, observed).sum())(arrays["prediction"])
    assert np.all(np.isfinite(grad)) and np.all(np.asarray(grad[1]) == 0.0)
    whole = velocity_loss(**arrays, t=T, given=NONE_GIVEN, kind=kind)
    np.testing.assert_array_equal(np.delete(loss, 1), np.delete(whole, 1))


def test_a_prediction_in_bfloat16_is_scored_in_float32(arrays):
    arrays["prediction"] = arrays["prediction"].astype(jnp.bfloat16)
    loss = velocity_loss(**arrays, t=T, given=NONE_GIVEN, kind="x")
    wide = velocity_loss(
        **arrays | {"prediction": arrays["prediction"].astype(jnp.float32)},
        t=T,
        given=NONE_GIVEN,
        kind="x",
    )
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, wide)
