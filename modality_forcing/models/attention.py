"""Full bidirectional grouped-query attention: one interface over one kernel per kind of device."""

from __future__ import annotations

from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from modality_forcing.models.blockwise import blockwise
from modality_forcing.models.layout import is_sharded, spec

ATTENTION = "attention"  # remat policies know what attention's backward pass reads by this name
CACHE = 2**21  # bytes
LARGE = 2**24  # bytes; at a quarter of it, blocks are no faster
BLOCK = 1024  # most tokens in a block of the TPU kernel
LANES = 128  # its blocks are multiples of this
KERNELS = {"cpu": "einsum", "gpu": "cudnn", "cuda": "cudnn", "tpu": "splash"}  # by platform
# Order of heads (h) and tokens (n) that each kernel takes without a transpose.
HEAD_AXIS_ORDER = {"einsum": "hn", "splash": "hn", "cudnn": "nh"}


def attend(
    kernel: str, q: Float[Array, "b _ _ k"], k: Float[Array, "b _ _ k"], v: Float[Array, "b _ _ k"]
) -> Float[Array, "b _ _ k"]:
    """Attention of scaled queries; query head i reads kv head i // (h / g); softmax in float32.

    q [b h n k] and k, v [b g n k], or heads after tokens where `HEAD_AXIS_ORDER` has "nh"; returns
    q's shape and dtype.
    """
    return {"einsum": einsum, "splash": splash, "cudnn": cudnn}[kernel](q, k, v)


def einsum(
    q: Float[Array, "b h n k"], k: Float[Array, "b g n k"], v: Float[Array, "b g n k"]
) -> Float[Array, "b h n k"]:
    """Runs anywhere; keeps one [n n] array for the backward pass and writes no other if XLA allows.

    On a single CPU it processes as many examples at a time as keep that array in the cache. Where
    the array of one example is beyond `LARGE`, there is none: see `blockwise`.
    """
    b, h, n, _ = q.shape
    is_symbolic = not isinstance(b, int)  # a program for any batch, and maybe for other devices
    if is_symbolic or jax.default_backend() != "cpu" or is_sharded():
        return cast(Array, _einsum(q, k, v))
    if 4 * h * n * n > LARGE:
        return blockwise(q, k, v, ATTENTION)
    limit = max(CACHE // (4 * h * n * n), 1)
    few = next(i for i in range(min(b, limit), 0, -1) if b % i == 0)
    if few == b:
        return cast(Array, _einsum(q, k, v))
    parts = tuple(x.reshape(b // few, few, *x.shape[1:]) for x in (q, k, v))
    return jax.lax.map(lambda part: cast(Array, _einsum(*part)), parts).reshape(q.shape)


@jax.custom_vjp
def _einsum(q: Array, k: Array, v: Array) -> Array:
    return _forward(q, k, v)[0]


def _forward(q: Array, k: Array, v: Array) -> tuple[Array, tuple[Array, ...]]:
    b, h, n, c = q.shape
    g = k.shape[1]
    # Queries that share a kv head become rows of one larger product.
    q = q.reshape(b, g, h // g * n, c)
    logits = jnp.einsum("bgqk,bgsk->bgqs", q, k, preferred_element_type=jnp.float32)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    weights = weights.astype(v.dtype)
    # Dividing the mixed values saves dividing the [n n] weights. The total is that of the rounded
    # weights, or they would not add up to 1.
    total = jnp.sum(weights, axis=-1, keepdims=True, dtype=jnp.float32)
    mixed = jnp.einsum("bgqs,bgsk->bgqk", weights, v, preferred_element_type=jnp.float32) / total
    weights, total, mixed = (checkpoint_name(x, ATTENTION) for x in (weights, total, mixed))
    return mixed.astype(v.dtype).reshape(b, h, n, c), (q, k, v, weights, total, mixed)


def _backward(residuals: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
    q, k, v, weights, total, mixed = residuals
    # Rounded first: dweights and `common` may nearly cancel.
    dmixed = (dy.reshape(mixed.shape) / total).astype(v.dtype)
    # The part of the gradient that only scales all weights of a row.
    common = jnp.sum(dmixed * mixed, axis=-1, keepdims=True)
    dv = jnp.einsum("bgqs,bgqk->bgsk", weights, dmixed)
    dweights = jnp.einsum("bgqk,bgsk->bgqs", dmixed, v, preferred_element_type=jnp.float32)
    dlogits = (weights * (dweights - common)).astype(v.dtype)
    dq = jnp.einsum("bgqs,bgsk->bgqk", dlogits, k)
    dk = jnp.einsum("bgqs,bgqk->bgsk", dlogits, q)
    return dq.reshape(dy.shape), dk, dv


_einsum.defvjp(_forward, _backward)


def splash(
    q: Float[Array, "b h n k"],
    k: Float[Array, "b g n k"],
    v: Float[Array, "b g n k"],
    *,
    interpret: bool = False,
) -> Float[Array, "b h n k"]:
    """Pallas kernel for TPUs, in blocks of at most 1024 tokens; k is a multiple of 128.

    Tokens that do not fill the blocks are padded, and nothing attends to the padding. XLA cannot
    split a kernel over devices, so each device runs it on its own examples and heads. interpret:
    run without a TPU, slowly, for tests.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    def local(q: Array, k: Array, v: Array) -> Array:
        h, n = q.shape[1:3]
        block, padded = blocks(n)
        full = splash_attention_mask.FullMask((padded, padded))
        mask = splash_attention_mask.MultiHeadMask([full] * h)
        names = ("block_q", "block_kv", "block_kv_compute")
        backward = ("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute")
        kernel = splash_attention_kernel.make_splash_mha(
            mask,
            block_sizes=splash_attention_kernel.BlockSizes(
                **dict.fromkeys(names + backward, block), use_fused_bwd_kernel=True
            ),
            head_shards=1,
            q_seq_shards=1,
            residual_checkpoint_name=ATTENTION,
            interpret=interpret,
        )
        if padded == n:
            return cast(Array, jax.vmap(kernel)(q, k, v))
        q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, padded - n), (0, 0))) for x in (q, k, v))
        own = (jnp.arange(padded) >= n).astype(jnp.int32)  # padding attends to padding alone
        ids = splash_attention_kernel.SegmentIds(own, own)
        out = cast(Array, jax.vmap(partial(kernel, segment_ids=ids))(q, k, v))
        return out[:, :, :n]

    if not is_sharded():
        return local(q, k, v)
    split = spec("bh")
    on_mesh = jax.shard_map(local, in_specs=(split,) * 3, out_specs=split, check_vma=False)
    return on_mesh(q, k, v)


def blocks(n: int) -> tuple[int, int]:
    """Returns the TPU kernel's block for n tokens, and the tokens with padding.

    The least padding, and then the largest block: up to 1024, and not below half of that where
    there are several.
    """
    fewest = -(-n // BLOCK)
    choices = []
    for count in range(fewest, 2 * fewest + 1 if fewest > 1 else 2):
        block = -(-n // (count * LANES)) * LANES
        choices.append((block * count, -block))
    padded, block = min(choices)
    return -block, padded


def cudnn(
    q: Float[Array, "b n h k"], k: Float[Array, "b n g k"], v: Float[Array, "b n g k"]
) -> Float[Array, "b n h k"]:
    """NVIDIA's fused kernel, requested by name: jax.nn never chooses it by itself."""
    return jax.nn.dot_product_attention(q, k, v, scale=1.0, implementation="cudnn")
