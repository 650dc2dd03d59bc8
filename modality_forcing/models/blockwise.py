"""Attention for long sequences on a CPU: blocks of weights, never all [n n], computed twice.

The backward pass computes the weights again from the saved logarithm of each row's total, as in
FlashAttention-2 (arXiv 2307.08691). There they are transposed, [keys queries]: each of its five
products then has contiguous operands in the order that XLA's fast kernel on CPUs takes, and no sum
over rows is left.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

BLOCK = 512  # most rows of weights at a time

_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def blockwise(
    q: Float[Array, "b h n k"], k: Float[Array, "b g n k"], v: Float[Array, "b g n k"], name: str
) -> Float[Array, "b h n k"]:
    """Attention of scaled queries, one kv head at a time; softmax in float32.

    name: of what the backward pass reads besides q, k and v, for remat policies.
    """
    b, g = k.shape[:2]
    heads = (x.reshape(b * g, -1, x.shape[-1]) for x in (q, k, v))  # queries that share a kv head
    return cast(Array, _attend(name, *heads)).reshape(q.shape)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(name: str, q: Array, k: Array, v: Array) -> Array:
    return _forward(name, q, k, v)[0]


def _forward(name: str, q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    mixed, total = jax.lax.map(lambda head: _forward_head(*head), (q, k, v))
    mixed, total = checkpoint_name(mixed, name), checkpoint_name(total, name)
    return mixed, (q, k, v, mixed, total)


def _backward(name: str, residuals: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    return jax.lax.map(lambda head: _backward_head(*head), (*residuals, dy))


_attend.defvjp(_forward, _backward)


def _forward_head(
    q: Float[Array, "m k"], k: Float[Array, "n k"], v: Float[Array, "n k"]
) -> tuple[Float[Array, "m k"], Float[Array, " m"]]:
    """Returns the mixed values, and the logarithm of the sum of each row's exponentials."""
    parts = []
    for queries in _blocks(q):
        logits = _product("qk,sk->qs", queries, k)
        largest = jnp.max(logits, axis=-1, keepdims=True)
        weights = jnp.exp(logits - largest).astype(v.dtype)
        total = jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
        mixed = _product("qs,sk->qk", weights, v) / total
        parts.append((mixed.astype(v.dtype), (largest + jnp.log(total))[:, 0]))
    mixed, totals = zip(*parts, strict=True)
    return jnp.concatenate(mixed), jnp.concatenate(totals)


def _backward_head(
    q: Array, k: Array, v: Array, mixed: Array, total: Array, dy: Array
) -> tuple[Array, Array, Array]:
    """Returns the gradients of q [m k], k [n k] and v [n k]."""
    # The part of the gradient that only scales all weights of a row.
    common = jnp.sum(dy.astype(jnp.float32) * mixed.astype(jnp.float32), axis=-1)
    dq, dk, dv = jnp.zeros(q.shape[::-1], jnp.float32), [], []
    for keys, values in zip(_blocks(k), _blocks(v), strict=True):
        weights = jnp.exp(_product("sk,qk->sq", keys, q) - total)
        dweights = _product("sk,qk->sq", values, dy)
        dlogits = (weights * (dweights - common)).astype(q.dtype)
        dv.append(_product("sq,qk->sk", weights.astype(v.dtype), dy))
        dk.append(_product("sq,qk->sk", dlogits, q))
        dq = dq + _product("ks,sq->kq", keys.T, dlogits)
    dk, dv = jnp.concatenate(dk), jnp.concatenate(dv)
    return dq.T.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype)


def _blocks(x: Float[Array, "n k"]) -> list[Float[Array, "_ k"]]:
    """Splits rows into the fewest blocks of at most `BLOCK`, of sizes as equal as can be."""
    return jnp.array_split(x, -(-len(x) // BLOCK))
