"""The masked velocity loss: squared error of the velocity, averaged over observed values."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from modality_forcing.diffusion.flow import T_MIN, NoisyTokens, Prediction


def masked_mean(values: Float[Array, "b n c"], mask: Bool[Array, "b n c"]) -> Float[Array, " b"]:
    """Averages each example over its True positions; an example without any gives 0, not NaN.

    Masked values are replaced before the sum, so that neither they nor their gradients can be NaN.
    """
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=(1, 2), dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1)


def velocity_loss(
    prediction: Float[Array, "b n c"],
    tokens: NoisyTokens,
    prediction_type: Prediction,
    *,
    t_min: float = T_MIN,
) -> Float[Array, " b"]:
    """Returns |v_hat - v|^2 of each example, averaged over its observed values.

    For x-prediction this is |x0_hat - x0|^2 / max(t, t_min)^2 (METHOD: x-prediction, velocity
    loss). An example whose modality is the condition counts exactly 0: its target is its input.
    """
    x0 = jnp.where(tokens.mask, tokens.x0, 0.0).astype(jnp.float32)
    prediction = prediction.astype(jnp.float32)
    if prediction_type == "x":
        error = (prediction - x0) / jnp.maximum(tokens.t, t_min)[:, None, None]
    else:
        error = prediction - (x0 - tokens.eps)
    return masked_mean(jnp.square(error), tokens.mask & ~tokens.is_cond[:, None, None])
