"""Rectified flow: x_t = (1 - t) x_0 + t eps and v = x_0 - eps; t = 0 is data, t = 1 is noise."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Prediction = Literal["x", "v"]

# Clamp of t in (x0_hat - x_t) / t for training, as in the public code. Short runs learn faster
# with more. Sampling has its own (sampler.T_MIN).
T_MIN = 0.05


class NoisyTokens(NamedTuple):
    """One modality of a batch on its way from data to loss."""

    x0: Float[Array, "b n c"]  # clean tokens
    mask: Bool[Array, "b n c"]  # which values of x0 were observed; the others may be anything
    eps: Float[Array, "b n c"]
    t: Float[Array, " b"]
    x_t: Float[Array, "b n c"]  # what the network sees
    is_cond: Bool[Array, " b"]  # given clean as a condition (t = 0), not predicted


def add_noise(
    x0: Float[Array, "b n c"],
    eps: Float[Array, "b n c"],
    t: Float[Array, " b"],
    mask: Bool[Array, "b n c"],
) -> Float[Array, "b n c"]:
    """Returns x_t. Unobserved values are pure noise at any t, as in a wholly missing map.

    `where`, not multiplication by the mask: an unobserved value may be NaN.
    """
    t = t[:, None, None]
    return jnp.where(mask, (1.0 - t) * jnp.where(mask, x0, 0.0) + t * eps, eps)


def to_x0(
    prediction: Float[Array, "b n c"],
    x_t: Float[Array, "b n c"],
    t: Float[Array, " b"],
    prediction_type: Prediction,
) -> Float[Array, "b n c"]:
    """Returns the clean tokens that a network's output stands for."""
    return prediction if prediction_type == "x" else x_t + t[:, None, None] * prediction


def to_velocity(
    prediction: Float[Array, "b n c"],
    x_t: Float[Array, "b n c"],
    t: Float[Array, " b"],
    prediction_type: Prediction,
    *,
    t_min: float = T_MIN,
) -> Float[Array, "b n c"]:
    """Returns the velocity that a network's output stands for.

    For "x" this is (x0_hat - x_t) / max(t, t_min).
    """
    if prediction_type == "v":
        return prediction
    return (prediction - x_t) / jnp.maximum(t, t_min)[:, None, None]
