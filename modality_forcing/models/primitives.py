"""The two layers everything is made of: a bias-free linear map and an RMS norm."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

fan_in = nnx.initializers.lecun_normal()
zeros = nnx.initializers.zeros_init()


def rms_norm(x: Float[Array, "*s d"], scale: Array | None = None, eps: float = 1e-6) -> Float[Array, "*s d"]:
    """X / rms(x) over the last axis in float32, times a learned scale if there is one; the result in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide if scale is None else wide * scale).astype(x.dtype)


class Linear(nnx.Module):
    """x @ w without a bias, computed in x's dtype; the weight is kept in float32."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, init: Callable = fan_in):
        self.w = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
        return x @ self.w[...].astype(x.dtype)
