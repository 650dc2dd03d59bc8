"""Self-distillation: its weight falls with the other modality's noise, its target is not trained, a given image is free."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from modality_forcing.diffusion.distillation import distillation_loss

STUDENT, TEACHER = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
FREE = jnp.zeros(3, bool)


def test_the_weight_runs_from_low_to_high():
    squares = np.mean((np.asarray(STUDENT) - np.asarray(TEACHER)) ** 2, axis=(1, 2))
    t = jnp.array([0.0, 0.25, 1.0])
    np.testing.assert_allclose(
        distillation_loss(STUDENT, TEACHER, t, FREE), squares * [0.1, 0.325, 1.0], rtol=1e-5
    )
    told = distillation_loss(STUDENT, TEACHER, t, FREE, high=2.0, low=0.5)
    np.testing.assert_allclose(told, squares * [0.5, 0.875, 2.0], rtol=1e-5)


def test_agreeing_costs_nothing():
    np.testing.assert_array_equal(
        distillation_loss(STUDENT, STUDENT, jnp.ones(3), FREE), np.zeros(3)
    )


def test_an_image_that_was_given_costs_nothing_and_moves_nothing():
    given = jnp.array([False, True, False])
    of = lambda y: distillation_loss(y, TEACHER, jnp.ones(3), given)
    grad = np.asarray(jax.grad(lambda y: of(y).sum())(STUDENT))
    assert float(of(STUDENT)[1]) == 0.0 and np.all(grad[1] == 0.0)
    assert np.all(grad[[0, 2]] != 0.0)
