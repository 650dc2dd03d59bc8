"""Self-distillation (paper, eq. 8): image velocities stay near the frozen text-to-image model."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from modality_forcing.diffusion.losses import masked_mean


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
