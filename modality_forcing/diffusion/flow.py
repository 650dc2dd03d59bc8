"""Rectified flow with t = 1 noise: x_t = (1 - t) x_0 + t eps, velocity v = x_0 - eps, and the two ways a network predicts it."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Prediction = Literal["x", "v"]

# The public sampler's clamp of t in (x0_hat - x_t) / t. Short runs learn faster with a larger one.
T_MIN = 0.05


def corrupt(
    x0: Float[Array, "b n c"],
    eps: Float[Array, "b n c"],
    t: Float[Array, " b"],
    observed: Bool[Array, "b n c"],
) -> Float[Array, "b n c"]:
    """Returns x_t; where x0 was not observed it is pure noise whatever t, just as a wholly missing map is.

    `where`, not multiplication by the mask: an unknown value may be anything, NaN included.
    """
    t = t[:, None, None]
    return jnp.where(observed, (1.0 - t) * jnp.where(observed, x0, 0.0) + t * eps, eps)


def to_x0(
    prediction: Float[Array, "b n c"],
    x_t: Float[Array, "b n c"],
    t: Float[Array, " b"],
    kind: Prediction,
) -> Float[Array, "b n c"]:
    """Returns the clean tokens a network's output stands for."""
    return prediction if kind == "x" else x_t + t[:, None, None] * prediction


def to_velocity(
    prediction: Float[Array, "b n c"],
    x_t: Float[Array, "b n c"],
    t: Float[Array, " b"],
    kind: Prediction,
    t_min: float = T_MIN,
) -> Float[Array, "b n c"]:
    """Returns the velocity a network's output stands for: (x0_hat - x_t) / max(t, t_min) for x-prediction."""
    return (prediction - x_t) / jnp.maximum(t, t_min)[:, None, None] if kind == "x" else prediction


def from_velocity(
    velocity: Float[Array, "b n c"],
    x_t: Float[Array, "b n c"],
    t: Float[Array, " b"],
    kind: Prediction,
    t_min: float = T_MIN,
) -> Float[Array, "b n c"]:
    """Inverts `to_velocity`."""
    return x_t + jnp.maximum(t, t_min)[:, None, None] * velocity if kind == "x" else velocity
