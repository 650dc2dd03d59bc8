"""The block all streams share: attention and MLP in parallel from one normed input, and a stack of them under one scan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from modality_forcing.config import ModelConfig
from modality_forcing.models.attention import ATTENTION, LETTERS, attend
from modality_forcing.models.layers import GATHERED, fan_in, project, rms_norm
from modality_forcing.models.layout import devices, spread_out
from modality_forcing.models.rope import rotate

PRODUCT = "product"  # the name under which remat policies know products with weights
Segments = tuple[
    int, ...
]  # where in the sequence each row of the modulation begins to hold, the first at 0


class Block(nnx.Module):
    """One transformer block: x + gate * norm(attention(y) + mlp(y)), y = norm(x) * (1 + scale) + shift.

    11.5 d^2 parameters at head dim x heads = d, 4 query heads per kv head and f = 3 d. The modulation (shift, scale,
    gate) is computed once for all blocks, in float32; a block adds its own learned offset, zero at the start, so that
    with the zero-initialised gate every block starts as the identity.
    """

    # For diagnostics, set on a single block: called with the name and output of attention and MLP.
    # Not nnx's sow: with flax 0.12.8 that warns outside nnx.capture, which flax 0.12.2 lacks.
    record: Callable[[str, Array], None] | None = None

    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        self.c = c
        d, f, h, g, k = c.width, c.mlp_dim, c.heads, c.kv_heads, c.head_dim
        weight = lambda *shape: nnx.Param(fan_in(rngs.params(), shape, jnp.float32))
        self.q, self.k, self.v = weight(d, h * k), weight(d, g * k), weight(d, g * k)
        self.gate, self.up = weight(d, f), weight(d, f)
        self.out, self.down = weight(h * k, d), weight(f, d)
        self.q_scale, self.k_scale = nnx.Param(jnp.ones(k)), nnx.Param(jnp.ones(k))
        self.offset = nnx.Param(jnp.zeros(3 * d))

    def __call__(
        self,
        x: Float[Array, "b n d"],
        levels: Float[Array, "b s e"],
        segments: Segments,
        angles: Float[Array, "n a"],
    ) -> Float[Array, "b n d"]:
        c = self.c
        d, h, g, k = c.width, c.heads, c.kv_heads, c.head_dim
        hn = LETTERS[c.attention]  # heads before tokens, or after
        angles = angles if hn == "hn" else angles[:, None]
        gn = hn.replace("h", "g")

        wide, narrow = partial(jnp.asarray, dtype=jnp.float32), partial(jnp.asarray, dtype=x.dtype)
        shift, scale, gate = (
            spread(m, segments, x) for m in jnp.split(levels + self.offset[...], 3, axis=-1)
        )  # [b *n d]
        y = narrow(rms_norm(wide(x)) * (1.0 + scale) + shift)
        with jax.named_scope("attention"):
            q = product(f"bnd,dhk->b{hn}k", y, self.q[...].reshape(d, h, k))
            key = product(f"bnd,dgk->b{gn}k", y, self.k[...].reshape(d, g, k))
            value = product(f"bnd,dgk->b{gn}k", y, self.v[...].reshape(d, g, k))
            q = rotate(rms_norm(q, self.q_scale[...] * k**-0.5), angles)
            key = rotate(rms_norm(key, self.k_scale[...]), angles)
            attention = project(
                f"b{hn}k,hkd->bnd",
                attend(c.attention, q, key, value),
                self.out[...].reshape(h, k, d),
            )
        with jax.named_scope("mlp"):
            hidden = jax.nn.silu(product("bnd,df->bnf", y, self.gate[...])) * product(
                "bnd,df->bnf", y, self.up[...]
            )
            mlp = project("bnf,fd->bnd", hidden, self.down[...])
            mixed = checkpoint_name(attention + mlp, PRODUCT)
        if self.record is not None:
            self.record("attention", attention)
            self.record("mlp", mlp)
        return narrow(wide(x) + gate * rms_norm(wide(mixed)))


def product(equation: str, y: Array, w: Array) -> Array:
    """`project`, its result worth keeping for the backward pass."""
    return checkpoint_name(project(equation, y, w), PRODUCT)


def spread(
    levels: Float[Array, "b s d"], segments: Segments, x: Float[Array, "b n d"]
) -> Float[Array, "b *n d"]:
    """Returns each of x's tokens its row of `levels`; chosen, not gathered, so that XLA never writes [b n d] to memory."""
    tokens = levels[:, :1]
    for i, begin in enumerate(segments[1:], 1):
        tokens = jnp.where((jnp.arange(x.shape[1]) >= begin)[:, None], levels[:, i : i + 1], tokens)
    return tokens


def remat(policy: str, keep_gathered: bool):
    """Returns the transformation of a block that decides what the backward pass computes again.

    "none": nothing. "elementwise": all but products and attention; costs no FLOPs to speak of, and memory traffic is what
    it saves. "full": the whole block. Weights cast and gathered from their shards are so again, unless `keep_gathered`.
    """
    if policy == "none" and (keep_gathered or not spread_out()):
        return lambda f: f
    policies = jax.checkpoint_policies
    names = {"none": (), "elementwise": (PRODUCT, ATTENTION), "full": ()}[policy] + (
        GATHERED,
    ) * keep_gathered
    kept = (
        policies.save_anything_except_these_names(GATHERED)
        if policy == "none"
        else policies.save_only_these_names(*names)
    )
    return lambda f: jax.checkpoint(
        f, policy=kept, prevent_cse=False
    )  # a scan keeps forward and backward apart


class Stack(nnx.Module):
    """Blocks with their weights stored stacked on a leading axis and applied by one scan, so that 30 compile like one."""

    def __init__(self, c: ModelConfig, blocks: int, *, rngs: nnx.Rngs, keep_gathered: bool = False):
        self.c, self.depth, self.keep_gathered = c, blocks, keep_gathered
        self.layers = nnx.vmap(lambda key: Block(c, rngs=nnx.Rngs(key)))(
            jax.random.split(rngs.params(), blocks)
        )

    def __call__(
        self,
        x: Float[Array, "b n d"],
        levels: Float[Array, "b s e"],
        segments: Segments,
        angles: Float[Array, "n a"],
    ) -> Float[Array, "b n d"]:
        graph, weights = nnx.split(self.layers)
        keep = (
            self.keep_gathered and devices("fsdp") > 1
        )  # where nothing is sharded, a copy would only take memory
        step = remat(self.c.remat, keep)(
            lambda x, w: nnx.merge(graph, w)(x, levels, segments, angles)
        )
        x, _ = jax.lax.scan(
            lambda x, w: (step(x, w), None), x, weights, unroll=min(self.c.unroll, self.depth)
        )
        return x
