"""The gradient and the minimum of the descent, and weights as repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.optimize import minimize as scipy_minimize

from modality_forcing.laws import solver
from modality_forcing.laws.forms import FORMS, Design
from tests.unit.laws.grid import theta_of

TRUE = {
    "chinchilla": [1.8, 480, 0.35, 2100, 0.37],
    "transfer": [0.03, 0.6, 0.25, 40, 0.3, 20, 0.35, 2],
}


def problem(name: str = "chinchilla", noise: float = 0.02) -> tuple[Design, np.ndarray, np.ndarray]:
    """A design, log losses and the true theta."""
    axes = {
        "chinchilla": {"N": np.geomspace(1e7, 1e10, 6), "D": np.geomspace(1e8, 1e11, 6)},
        "transfer": {
            "N": np.geomspace(1e6, 1e8, 4),
            "n": np.array([0, 1e4, 1e5, 1e6]),
            "s": np.geomspace(1e4, 1e6, 3),
        },
    }[name]
    variables = dict(zip(axes, (x.ravel() for x in np.meshgrid(*axes.values())), strict=True))
    form = FORMS[name]
    law = form.predict(TRUE[name], variables)
    design = Design.of(form, variables)
    return (
        design,
        law + np.random.default_rng(0).normal(0, noise, law.size),
        theta_of(design, np.array(TRUE[name])),
    )


def test_loss_is_quadratic_then_linear():
    at = np.array([0, 1e-3, -5e-4, 3e-3, -3e-3])
    np.testing.assert_allclose(solver.loss(at), [0, 5e-7, 1.25e-7, 2.5e-6, 2.5e-6], rtol=1e-12)


@pytest.mark.parametrize("name", TRUE)
def test_gradients_are_those_of_the_law(name):
    design, _, theta = problem(name)
    _, share = solver.shares(design, theta[None])
    numeric = approx_fprime(theta, lambda t: solver.shares(design, t[None])[0][0], 1e-7)
    np.testing.assert_allclose(solver.gradients(design, share)[0].T, numeric, atol=2e-6)
    np.testing.assert_allclose(share.sum(axis=1), 1)


@pytest.mark.parametrize("name", TRUE)
def test_no_point_near_the_minimum_is_lower(name):
    design, log_loss, theta = problem(name)
    ones = np.ones((1, len(log_loss)))
    found, value = solver.minimize(design, log_loss, ones, theta[None])
    assert value[0] == solver.objective(design, log_loss, ones, found)[0]

    def goal(t):
        return solver.objective(design, log_loss, ones, t[None])[0] / value[0]

    other = scipy_minimize(
        goal,
        found[0] + 0.01,
        method="Nelder-Mead",
        options={"maxiter": 4000, "maxfev": 4000, "xatol": 1e-9},
    )
    assert other.fun > 1 - 1e-9
    around = found + np.random.default_rng(1).normal(
        0, 1, (300, len(theta))
    ) * 10.0 ** np.random.default_rng(2).uniform(-6, -1, (300, 1))
    assert solver.objective(design, log_loss, ones, around).min() > value[0] * (1 - 1e-12)


def test_bad_starts_reach_the_minimum():
    design, log_loss, theta = problem()
    rng = np.random.default_rng(3)
    best = solver.minimize(design, log_loss, np.ones((1, 36)), theta[None])[1][0]
    starts = np.where(
        design.is_coefficient, rng.uniform(-8, 2, (200, 5)), rng.uniform(0, 3, (200, 5))
    )
    _, value = solver.minimize(design, log_loss, np.ones((200, 36)), starts)
    assert np.mean(value < best * (1 + 1e-6)) > 0.9
    assert value.min() > best * (1 - 1e-9)


def test_weight_of_2_equals_a_repeated_row():
    design, log_loss, theta = problem()
    twice = np.r_[np.arange(36), 0, 5]
    weights = np.ones((1, 36))
    weights[0, [0, 5]] = 2
    again = Design(
        design.form, design.slopes[:, :, twice], design.absent[:, twice], design.to_natural
    )
    a, value = solver.minimize(design, log_loss, weights, theta[None])
    b, same = solver.minimize(again, log_loss[twice], np.ones((1, 38)), theta[None])
    np.testing.assert_allclose(value, same, rtol=1e-9)
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_batch_equals_single_descents_inside_the_box():
    design, log_loss, theta = problem(noise=0.5)
    rng = np.random.default_rng(4)
    weights = rng.multinomial(36, np.ones(36) / 36, 40).astype(float)
    starts = theta + rng.normal(0, 20, (40, 5))
    found, value = solver.minimize(design, log_loss, weights, starts)
    box = solver.Box.of(design, log_loss)
    assert np.all((found >= box.low) & (found <= box.high)) and np.isfinite(value).all()
    alone = solver.minimize(design, log_loss, weights[7:8], starts[7:8])
    np.testing.assert_allclose(alone[1][0], value[7], rtol=1e-6)
