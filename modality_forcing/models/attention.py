"""Grouped-query attention over all tokens, with normed and rotated queries and keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from modality_forcing.models.primitives import rms_norm
from modality_forcing.models.rotary import rotate


def attention(
    q: Float[Array, "b h n k"],
    k: Float[Array, "b g n k"],
    v: Float[Array, "b g n k"],
    q_scale: Float[Array, " k"],
    k_scale: Float[Array, " k"],
    angles: Float[Array, "n a"],
) -> Float[Array, "b h n k"]:
    """Full bidirectional attention; query head i reads kv head i // (h / g); softmax in float32."""
    b, h, n, c = q.shape
    g = k.shape[1]
    q = rotate(rms_norm(q, q_scale), angles)
    k = rotate(rms_norm(k, k_scale), angles)
    q = q.reshape(b, g, h // g * n, c)  # the queries that share a kv head become rows of one larger product
    logits = jnp.einsum("bgqk,bgsk->bgqs", q, k, preferred_element_type=jnp.float32) * c**-0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("bgqs,bgsk->bgqk", weights, v).reshape(b, h, n, c)
