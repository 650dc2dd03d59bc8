"""The transformer block all streams share, and a stack of blocks under one scan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, PyTree

from modality_forcing.config import ModelConfig
from modality_forcing.models.attention import ATTENTION, HEAD_AXIS_ORDER, attend
from modality_forcing.models.int8 import dequantize_tree
from modality_forcing.models.layers import GATHERED, Adapted, fan_in, rms_norm, sharded_einsum
from modality_forcing.models.layout import devices, is_sharded
from modality_forcing.models.lora import weight
from modality_forcing.models.rope import apply_rope

PRODUCT = "product"  # remat policies know einsums with weights by this name
Segments = tuple[int, ...]  # first token of each row of the modulation; starts with 0
Forward = Callable[[PyTree, nnx.State], PyTree]


class Projections(nnx.Module):
    """The weights of attention and MLP for the tokens of one stream, or of all."""

    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        self.c = c
        d, f, h, g, k = c.width, c.mlp_dim, c.heads, c.kv_heads, c.head_dim

        def matrix(*shape: int) -> nnx.Param:
            return nnx.Param(fan_in(rngs.params(), shape, jnp.float32))

        self.q, self.k, self.v = matrix(d, h * k), matrix(d, g * k), matrix(d, g * k)
        self.gate, self.up = matrix(d, f), matrix(d, f)
        self.out, self.down = matrix(h * k, d), matrix(f, d)
        self.q_scale, self.k_scale = nnx.Param(jnp.ones(k)), nnx.Param(jnp.ones(k))

    def heads(self, y: Float[Array, "b n d"]) -> tuple[Array, Array, Array]:
        """Returns normalized queries, scaled for attention, and keys, and values, by head."""
        c, k = self.c, self.c.head_dim
        hn = HEAD_AXIS_ORDER[c.attention]  # heads before tokens, or after
        q, key, value = (
            checkpointed_einsum(
                f"bnd,d{a}k->b{hn.replace('h', a)}k", y, weight(self, name, c.width, n, k)
            )
            for name, a, n in (("q", "h", c.heads), ("k", "g", c.kv_heads), ("v", "g", c.kv_heads))
        )
        return rms_norm(q, self.q_scale[...] * k**-0.5), rms_norm(key, self.k_scale[...]), value

    def mix(self, heads: Float[Array, "b _ _ k"]) -> Float[Array, "b n d"]:
        """Maps the heads' outputs to the width."""
        hn = HEAD_AXIS_ORDER[self.c.attention]
        w = weight(self, "out", self.c.heads, self.c.head_dim, self.c.width)
        return sharded_einsum(f"b{hn}k,hkd->bnd", heads, w)

    def mlp(self, y: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Two layers, gated by SiLU."""
        gated = jax.nn.silu(checkpointed_einsum("bnd,df->bnf", y, weight(self, "gate")))
        hidden = gated * checkpointed_einsum("bnd,df->bnf", y, weight(self, "up"))
        return sharded_einsum("bnf,fd->bnd", hidden, weight(self, "down"))


class Block(Projections):
    """Attention and MLP in parallel: x + gate * norm(attention(y) + mlp(y)).

    y = norm(x) * (1 + scale) + shift. 11.5 d^2 parameters at head dim x heads = d, 4 query heads
    per kv head and f = 3 d. The modulation (shift, scale, gate) is computed once for all blocks,
    in float32; a block adds its own learned offset, zero at the start, so that with a gate of zero
    every block starts as the identity.
    """

    # For diagnostics, set on a single block: called with the name and output of attention and MLP.
    # Not nnx's sow: with flax 0.12.8 that warns outside nnx.capture, which flax 0.12.2 lacks.
    record: Callable[[str, Array], None] | None = None

    def __init__(self, c: ModelConfig, *, rngs: nnx.Rngs):
        super().__init__(c, rngs=rngs)
        self.offset = nnx.Param(jnp.zeros(3 * c.width))

    def __call__(
        self,
        x: Float[Array, "b n d"],
        modulation: Float[Array, "b s e"],  # e = 3 d
        segments: Segments,
        angles: Float[Array, "n a"],
    ) -> Float[Array, "b n d"]:
        kernel = self.c.attention
        # [n a], or [n 1 a] where heads come after tokens.
        angles = angles if HEAD_AXIS_ORDER[kernel] == "hn" else angles[:, None]

        def to_f32(y: Array) -> Array:
            return jnp.asarray(y, dtype=jnp.float32)

        def to_compute_dtype(y: Array) -> Array:
            return jnp.asarray(y, dtype=x.dtype)

        rows = jnp.split(modulation + self.offset[...], 3, axis=-1)  # [b s d] each
        shift, scale, gate = (broadcast_modulation(m, segments, x.shape[1]) for m in rows)
        y = to_compute_dtype(rms_norm(to_f32(x)) * (1.0 + scale) + shift)  # [b n d]
        with jax.named_scope("attention"):
            q, key, value = self.heads(y)
            heads = attend(kernel, apply_rope(q, angles), apply_rope(key, angles), value)
            attention = self.mix(heads)
        with jax.named_scope("mlp"):
            mlp = self.mlp(y)
            mixed = checkpoint_name(attention + mlp, PRODUCT)  # [b n d]
        if self.record is not None:
            self.record("attention", attention)
            self.record("mlp", mlp)
        return to_compute_dtype(to_f32(x) + gate * rms_norm(to_f32(mixed)))


def checkpointed_einsum(equation: str, x: Array, w: Array | Adapted) -> Array:
    """`sharded_einsum` whose result remat policies may keep for the backward pass."""
    return checkpoint_name(sharded_einsum(equation, x, w), PRODUCT)


def broadcast_modulation(
    rows: Float[Array, "b s d"], segments: Segments, tokens: int
) -> Float[Array, "b _ d"]:
    """Returns each token's row, [b n d], or [b 1 d] if all share one.

    Selected, not gathered, so that XLA never writes [b n d] to memory.
    """
    out = rows[:, :1]
    for i, start in enumerate(segments[1:], 1):
        out = jnp.where((jnp.arange(tokens) >= start)[:, None], rows[:, i : i + 1], out)
    return out


def remat(policy: str, keep_gathered: bool) -> Callable[[Forward], Forward]:
    """Returns the transformation of a block that decides what the backward pass recomputes.

    "none": nothing. "elementwise": all but einsums and attention; hardly any FLOPs, saves memory
    traffic. "full": the whole block. Weights are cast and gathered from their shards again, unless
    `keep_gathered`.
    """
    if policy == "none" and (keep_gathered or not is_sharded()):
        return lambda f: f
    policies = jax.checkpoint_policies
    if policy == "none":
        saved = policies.save_anything_except_these_names(GATHERED)
    else:
        names = {"elementwise": (PRODUCT, ATTENTION), "full": ()}[policy]
        saved = policies.save_only_these_names(*names, *[GATHERED] * keep_gathered)
    # prevent_cse: a scan keeps forward and backward pass apart by itself.
    return lambda f: jax.checkpoint(f, policy=saved, prevent_cse=False)


class Stack(nnx.Module):
    """Blocks whose weights are stacked on a leading axis and applied by one scan.

    30 blocks compile as fast as one. block: builds one from `rngs`; by default a `Block` of c.
    """

    def __init__(
        self,
        c: ModelConfig,
        num_layers: int,
        block: Callable[..., nnx.Module] | None = None,
        *,
        rngs: nnx.Rngs,
        keep_gathered: bool = False,
    ):
        self.c, self.depth, self.keep_gathered = c, num_layers, keep_gathered
        build = block or partial(Block, c)
        keys = jax.random.split(rngs.params(), num_layers)
        self.layers = nnx.vmap(lambda key: build(rngs=nnx.Rngs(key)))(keys)

    def __call__(self, x: PyTree, *args: PyTree) -> PyTree:
        """Applies block after block to x, an array or a mapping of arrays.

        args: what every block takes besides, such as modulation and positions.
        """
        graph, weights = nnx.split(self.layers)

        def apply(x: PyTree, w: nnx.State) -> PyTree:
            # Matrices in int8 become matrices here, one layer at a time.
            return nnx.merge(graph, dequantize_tree(w, self.c.dtype))(x, *args)

        # Where nothing is sharded, a kept copy would only take memory.
        keep = self.keep_gathered and devices("fsdp") > 1
        block = remat(self.c.remat, keep)(apply)
        unroll = min(self.c.unroll, self.depth)
        x, _ = jax.lax.scan(lambda x, w: (block(x, w), None), x, weights, unroll=unroll)
        return x
