"""The block all streams share: attention and MLP in parallel from one normed input, and a stack of them under one scan."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from modality_forcing.config import ModelConfig
from modality_forcing.models.attention import attention
from modality_forcing.models.primitives import fan_in, rms_norm


class Block(nnx.Module):
    """One transformer block: x + gate * norm(attention(y) + mlp(y)), y = norm(x) * (1 + scale) + shift.

    11.5 d^2 parameters at head dim x heads = d, 4 query heads per kv head and f = 3 d. The modulation (shift, scale,
    gate) is computed once for all blocks; a block adds its own learned offset, zero at the start, so that with the
    zero-initialised gate every block starts as the identity.
    """

    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        self.c = c
        d, f, h, g, k = c.width, c.ffn, c.heads, c.kv_heads, c.head_dim
        weight = lambda *shape: nnx.Param(fan_in(rngs.params(), shape, jnp.float32))  # noqa: E731
        self.q, self.k, self.v = weight(d, h * k), weight(d, g * k), weight(d, g * k)
        self.gate, self.up = weight(d, f), weight(d, f)
        self.out, self.down = weight(h * k, d), weight(f, d)
        self.q_scale, self.k_scale = nnx.Param(jnp.ones(k)), nnx.Param(jnp.ones(k))
        self.offset = nnx.Param(jnp.zeros(3 * d))

    def __call__(
        self, x: Float[Array, "b n d"], modulation: Float[Array, "b n e"], angles: Float[Array, "n a"]
    ) -> Float[Array, "b n d"]:
        c, dtype = self.c, x.dtype
        shift, scale, gate = jnp.split(modulation + self.offset[...].astype(dtype), 3, axis=-1)  # [b n d] each
        y = rms_norm(x) * (1.0 + scale) + shift

        def project(w: nnx.Param, heads: int) -> Array:
            return jnp.einsum("bnd,dhk->bhnk", y, w[...].astype(dtype).reshape(c.width, heads, c.head_dim))

        with jax.named_scope("attention"):
            mixed = attention(
                project(self.q, c.heads),
                project(self.k, c.kv_heads),
                project(self.v, c.kv_heads),
                self.q_scale[...],
                self.k_scale[...],
                angles,
            )  # [b h n k]
            out = self.out[...].astype(dtype).reshape(c.heads, c.head_dim, c.width)
            mixed = jnp.einsum("bhnk,hkd->bnd", mixed, out)
        with jax.named_scope("mlp"):
            hidden = jax.nn.silu(y @ self.gate[...].astype(dtype)) * (y @ self.up[...].astype(dtype))  # [b n f]
            mixed = mixed + hidden @ self.down[...].astype(dtype)
        return x + gate * rms_norm(mixed)


REMAT = {
    "none": lambda f: f,
    "dots": lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
    "full": jax.checkpoint,
}


class Stack(nnx.Module):
    """Blocks with their weights stored stacked on a leading axis and applied by one scan, so that 30 compile like one."""

    def __init__(self, c: ModelConfig, blocks: int, *, rngs: nnx.Rngs):
        self.c, self.depth = c, blocks
        self.layers = nnx.vmap(lambda key: Block(c, rngs=nnx.Rngs(key)))(jax.random.split(rngs.params(), blocks))

    def __call__(
        self, x: Float[Array, "b n d"], modulation: Float[Array, "b n e"], angles: Float[Array, "n a"]
    ) -> Float[Array, "b n d"]:
        graph, weights = nnx.split(self.layers)
        step = REMAT[self.c.remat](lambda x, w: nnx.merge(graph, w)(x, modulation, angles))
        x, _ = jax.lax.scan(lambda x, w: (step(x, w), None), x, weights, unroll=min(self.c.unroll, self.depth))
        return x
