"""The masked velocity loss: squared error of the velocity, averaged over what was observed, zero where nothing was."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from modality_forcing.diffusion.flow import T_MIN, Prediction


def masked_mean(values: Float[Array, "b n c"], mask: Bool[Array, "b n c"]) -> Float[Array, " b"]:
    """Averages over the True positions of each example; an example with none gives 0, never NaN.

    Masked values are replaced before the sum, so that neither they nor their gradients can be NaN.
    """
    total = jnp.sum(jnp.where(mask, values, 0.0), axis=(1, 2), dtype=jnp.float32)
    return total / jnp.maximum(jnp.sum(mask, axis=(1, 2)), 1)


def velocity_loss(
    prediction: Float[Array, "b n c"],
    x0: Float[Array, "b n c"],
    eps: Float[Array, "b n c"],
    t: Float[Array, " b"],
    observed: Bool[Array, "b n c"],
    given: Bool[Array, " b"],
    kind: Prediction,
    t_min: float = T_MIN,
) -> Float[Array, " b"]:
    """Returns |v_hat - v|^2 per example, averaged over its observed positions (METHOD: x-prediction loss in velocity space).

    For x-prediction this is |x0_hat - x0|^2 / max(t, t_min)^2. An example that was given this modality clean counts
    exactly 0: its target is its input.
    """
    x0 = jnp.where(observed, x0, 0.0).astype(jnp.float32)
    prediction = prediction.astype(jnp.float32)
    if kind == "x":
        error = (prediction - x0) / jnp.maximum(t, t_min)[:, None, None]
    else:
        error = prediction - (x0 - eps)
    return masked_mean(jnp.square(error), observed & ~given[:, None, None])
