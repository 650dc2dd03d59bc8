"""Full bidirectional grouped-query attention, one interface over the kernel of each kind of device."""

from __future__ import annotations

from typing import cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from modality_forcing.models.layout import spec, spread_out

ATTENTION = (
    "attention"  # the name under which remat policies know what attention's own backward pass reads
)
CACHE = 2**21  # bytes
KERNELS = {"cpu": "einsum", "gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}  # by platform
LETTERS = {
    "einsum": "hn",
    "splash": "hn",
    "cudnn": "nh",
}  # order of heads and tokens that each takes without a transpose


def attend(
    kernel: str, q: Float[Array, "b *hn k"], k: Float[Array, "b *gn k"], v: Float[Array, "b *gn k"]
) -> Array:
    """Attention of scaled queries; query head i reads kv head i // (h / g); softmax in float32.

    q [b h n k] and k, v [b g n k], or with heads after tokens where `LETTERS` says so; returns q's shape and dtype.
    """
    return {"einsum": einsum, "splash": splash, "cudnn": cudnn}[kernel](q, k, v)


def einsum(
    q: Float[Array, "b h n k"], k: Float[Array, "b g n k"], v: Float[Array, "b g n k"]
) -> Float[Array, "b h n k"]:
    """Runs anywhere; of all that is [n n], keeps one array for the backward pass and writes no other that XLA can avoid.

    On a single CPU takes as many examples at a time as leave that array in its cache.
    """
    b, h, n, _ = q.shape
    most = max(CACHE // (4 * h * n * n), 1)
    alone = jax.default_backend() == "cpu" and not spread_out()
    few = b if not alone else next(i for i in range(min(b, most), 0, -1) if b % i == 0)
    if few == b:
        return cast(Array, _einsum_by_hand(q, k, v))
    parts = tuple(x.reshape(b // few, few, *x.shape[1:]) for x in (q, k, v))
    return jax.lax.map(lambda part: cast(Array, _einsum_by_hand(*part)), parts).reshape(q.shape)


@jax.custom_vjp
def _einsum_by_hand(q: Array, k: Array, v: Array) -> Array:
    return _einsum(q, k, v)[0]


def _einsum(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    b, h, n, c = q.shape
    g = k.shape[1]
    q = q.reshape(
        b, g, h // g * n, c
    )  # the queries that share a kv head become rows of one larger product
    logits = jnp.einsum("bgqk,bgsk->bgqs", q, k, preferred_element_type=jnp.float32)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = weights.astype(v.dtype)
    # What divides the mixed values need not divide the [n n] weights. Of the rounded ones, or they would not add up to 1.
    total = jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
    mixed = jnp.einsum("bgqs,bgsk->bgqk", weights, v, preferred_element_type=jnp.float32) / total
    weights, total, mixed = (checkpoint_name(x, ATTENTION) for x in (weights, total, mixed))
    return mixed.astype(v.dtype).reshape(b, h, n, c), (q, k, v, weights, total, mixed)


def _einsum_back(kept: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    q, k, v, weights, total, mixed = kept
    dmixed = (dy.reshape(mixed.shape) / total).astype(
        v.dtype
    )  # rounded first: dweights and along may nearly cancel
    along = jnp.sum(
        dmixed * mixed, axis=-1, keepdims=True
    )  # the part that only scales all weights of a row
    dv = jnp.einsum("bgqs,bgqk->bgsk", weights, dmixed)
    dweights = jnp.einsum("bgqk,bgsk->bgqs", dmixed, v, preferred_element_type=jnp.float32)
    dlogits = (weights * (dweights - along)).astype(v.dtype)
    dq = jnp.einsum("bgqs,bgsk->bgqk", dlogits, k)
    dk = jnp.einsum("bgqs,bgqk->bgsk", dlogits, q)
    return dq.reshape(dy.shape), dk, dv


_einsum_by_hand.defvjp(_einsum, _einsum_back)


def splash(
    q: Float[Array, "b h n k"],
    k: Float[Array, "b g n k"],
    v: Float[Array, "b g n k"],
    interpret: bool = False,
) -> Float[Array, "b h n k"]:
    """Pallas kernel for TPUs, all tokens in one block: n up to 1024 and k are multiples of 128.

    XLA cannot split a kernel over devices, so each device runs it on its own examples and heads.
    interpret: run without a TPU, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    def local(q: Array, k: Array, v: Array) -> Array:
        h, n = q.shape[1:3]
        mask = splash_attention_mask.MultiHeadMask([splash_attention_mask.FullMask((n, n))] * h)
        sizes = splash_attention_kernel.BlockSizes(
            block_q=n,
            block_kv=n,
            block_kv_compute=n,
            block_q_dkv=n,
            block_kv_dkv=n,
            block_kv_dkv_compute=n,
            use_fused_bwd_kernel=True,
        )
        kernel = splash_attention_kernel.make_splash_mha(
            mask,
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=ATTENTION,
            interpret=interpret,
        )
        return cast(Array, jax.vmap(kernel)(q, k, v))

    if not spread_out():
        return local(q, k, v)
    split = spec("bh")
    return jax.shard_map(local, in_specs=(split, split, split), out_specs=split, check_vma=False)(
        q, k, v
    )


def cudnn(
    q: Float[Array, "b n h k"], k: Float[Array, "b n g k"], v: Float[Array, "b n g k"]
) -> Float[Array, "b n h k"]:
    """NVIDIA's fused kernel, by name: left to choose, jax.nn never takes it."""
    return jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation="cudnn")
