"""The losses: squared errors of velocities, averaged over observed values."""

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


def distillation_loss(
    student: Float[Array, "b n c"],
    teacher: Float[Array, "b n c"],
    t_other: Float[Array, " b"],
    is_cond: Bool[Array, " b"],
    *,
    high: float = 1.0,
    low: float = 0.1,
) -> Float[Array, " b"]:
    """Returns (high t_other + low (1 - t_other)) |v_teacher - v_student|^2 of each example.

    This is self-distillation (paper, eq. 8): image velocities stay near the frozen text-to-image
    model.

    Args:
      student: velocity of the model being trained.
      teacher: velocity of the frozen model on the same noisy image, without the other modality.
      t_other: noise level of the other modality; the noisier, the less it may change the image.
      is_cond: True where the image is the condition: nothing is predicted, so the loss is 0.
      high, low: weights at t_other = 1 and 0; the paper asks for high > low and gives no values.
    """
    weight = high * t_other + low * (1.0 - t_other)
    mask = jnp.broadcast_to(~is_cond[:, None, None], student.shape)
    return weight * masked_mean(jnp.square(student - teacher), mask)
