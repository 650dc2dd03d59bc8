"""What the transformers of text encoders share: weights, products, the RMS norm and the MLP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

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


_ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=True),
}


class FeedForward(nnx.Module):
    """Adds an MLP of each token, gated by an activation ("silu", or "gelu" by tanh), to states."""

    def __init__(
        self,
        width: int,
        mlp_dim: int,
        *,
        activation: str,
        eps: float,
        rngs: nnx.Rngs,
        dtype: DTypeLike,
    ):
        self.activation, self.eps = activation, eps
        d, f = width, mlp_dim
        self.scale = nnx.Param(jnp.ones(d, dtype))
        self.gate, self.up = (weight(d, f, std=d**-0.5, rngs=rngs, dtype=dtype) for _ in range(2))
        self.down = weight(f, d, std=f**-0.5, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        y = rms_norm(x, self.scale[...], self.eps)
        gate, up = (einsum("bld,df->blf", y, w[...]) for w in (self.gate, self.up))
        hidden = (_ACTIVATIONS[self.activation](gate) * up).astype(y.dtype)
        return x + einsum("blf,fd->bld", hidden, self.down[...])
