"""What the transformers of text encoders share: weights, products, and the RMS norm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def weight(*shape: int, std: float, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.Param:
    """Returns a normally distributed weight."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, dtype))


def einsum(equation: str, x: Array, w: Array) -> Float[Array, "*s"]:
    """Einsum of operands in their dtype, accumulated and returned in float32."""
    return jnp.einsum(equation, x, w, preferred_element_type=jnp.float32)


def rms_norm(
    x: Float[Array, "*b d"], scale: Float[Array, " d"], eps: float
) -> Float[Array, "*b d"]:
    """X / rms(x) times the scale, in float32; the result in the scale's dtype."""
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return (x * scale).astype(scale.dtype)
