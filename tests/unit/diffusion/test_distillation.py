"""Self-distillation: weight by the other modality's noise, no loss on conditions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from modality_forcing.diffusion.distillation import distillation_loss

STUDENT, TEACHER = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
NO_COND = jnp.zeros(3, bool)


def test_weight_runs_from_low_to_high():
    squares = np.mean((np.asarray(STUDENT) - np.asarray(TEACHER)) ** 2, axis=(1, 2))
    t = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(
        distillation_loss(STUDENT, TEACHER, t, NO_COND), squares * [0.1, 0.325, 1.0], rtol=1e-5
    )
    loss = distillation_loss(STUDENT, TEACHER, t, NO_COND, high=2.0, low=0.5)
    np.testing.assert_allclose(loss, squares * [0.5, 0.875, 2.0], rtol=1e-5)


def test_equal_velocities_have_no_loss():
    np.testing.assert_array_equal(
        distillation_loss(STUDENT, STUDENT, jnp.ones(3), NO_COND), np.zeros(3)
    )


def test_conditions_have_no_loss_and_no_gradient():
    is_cond = jnp.array([False, True, False])

    def loss(y):
        return distillation_loss(y, TEACHER, jnp.ones(3), is_cond)

    grad = np.asarray(jax.grad(lambda y: loss(y).sum())(STUDENT))
    assert float(loss(STUDENT)[1]) == 0.0 and np.all(grad[1] == 0.0)
    assert np.all(grad[[0, 2]] != 0.0)
