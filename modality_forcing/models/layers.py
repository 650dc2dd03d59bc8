"""What everything is made of: a product with a weight, a bias-free linear map and an RMS norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from modality_forcing.models.layout import constrain

fan_in = nnx.initializers.lecun_normal()
zeros = nnx.initializers.zeros_init()

GATHERED = "gathered"  # the name under which remat policies know weights gathered from their shards


def project(equation: str, x: Array, w: Array) -> Array:
    """Einsum of activations and a float32 weight, computed in x's dtype: project("bnd,df->bnf", x, w).

    The weight is cast on its shard and only then gathered. Its gradient leaves the product in float32, so that sums over
    devices and micro-batches are float32 too: XLA would round the gradient to x's dtype before it adds up the devices.
    """
    return cast(Array, _with_wide_gradient(equation, x, w))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _with_wide_gradient(equation: str, x: Array, w: Array) -> Array:
    return _project(equation, x, w)[0]


def _project(equation: str, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    _, of_w, of_y = _letters(equation)
    w = checkpoint_name(constrain(w.astype(x.dtype), of_w), GATHERED)
    return constrain(jnp.einsum(equation, x, w), of_y), (x, w)


def _project_back(equation: str, kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    of_x, of_w, of_y = _letters(equation)
    x, w = kept
    dx = jnp.einsum(f"{of_y},{of_w}->{of_x}", dy, w)
    dw = jnp.einsum(f"{of_x},{of_y}->{of_w}", x, dy, preferred_element_type=jnp.float32)
    return constrain(dx, of_x), dw


_with_wide_gradient.defvjp(_project, _project_back)


def _letters(equation: str) -> list[str]:
    return equation.replace("->", ",").split(",")


def rms_norm(
    x: Float[Array, "*s d"], scale: Array | None = None, eps: float = 1e-6
) -> Float[Array, "*s d"]:
    """X / rms(x) over the last axis in float32, times a learned scale if there is one; the result in x's dtype."""
    wide = x.astype(jnp.float32)
    wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    return (wide if scale is None else wide * scale).astype(x.dtype)


class Linear(nnx.Module):
    """x @ w without a bias, computed in x's dtype; the weight is kept in float32."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, init: Callable = fan_in):
        self.w = nnx.Param(init(rngs.params(), (inputs, outputs), jnp.float32))

    def __call__(self, x: Float[Array, "*s i"]) -> Float[Array, "*s o"]:
        return project({2: "bi,io->bo", 3: "bni,io->bno"}[x.ndim], x, self.w[...])
