"""The UMT5 text encoder: token ids to one state per token, from weights of transformers."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from modality_forcing.encoders.layers import FeedForward, einsum, rms_norm, weight
from modality_forcing.encoders.weights import Tensor
from modality_forcing.errors import UserError
from modality_forcing.tree import Tree

_KEYS = {  # our names of sizes -> those of config.json
    "vocab_size": "vocab_size",
    "width": "d_model",
    "mlp_dim": "d_ff",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "num_layers": "num_layers",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "eps": "layer_norm_epsilon",
}
# Other values of config.json that are fixed here. gelu_new and gelu_pytorch_tanh are one function.
_FIXED: dict[str, tuple[object, ...]] = {
    "feed_forward_proj": ("gated-gelu",),
    "is_gated_act": (True,),
    "dense_act_fn": ("gelu_new", "gelu_pytorch_tanh"),
}


@dataclass(frozen=True)
class UMT5Config:
    """Sizes of an encoder; buckets and max_distance are those of the relative position bias."""

    vocab_size: int
    width: int
    mlp_dim: int
    heads: int
    head_dim: int
    num_layers: int
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    @classmethod
    def from_dict(cls, read: Tree, where: object = "config.json") -> UMT5Config:
        """Returns the sizes in a config.json of transformers; UserError if of another network."""
        if (kind := read.get("model_type")) != "umt5":
            hint = "give the folder of a UMT5 encoder"
            raise UserError(f"model_type is {kind!r}, not 'umt5'", where=where, hint=hint)
        for key, known in _FIXED.items():
            if read.get(key, known[0]) not in known:
                hint = "only UMT5 with a gated tanh GELU can be read"
                raise UserError(f"{key} is {read[key]!r}, not {known[0]!r}", where=where, hint=hint)
        required = [_KEYS[field.name] for field in fields(cls) if field.default is MISSING]
        if missing := [key for key in required if key not in read]:
            hint = "download config.json again"
            raise UserError(f"lacks {', '.join(missing)}", where=where, hint=hint)
        sizes = {name: read[key] for name, key in _KEYS.items() if key in read}
        for name, value in sizes.items():
            number = isinstance(value, float if name == "eps" else int)
            if not number or isinstance(value, bool) or value <= 0:
                hint = "it must be a positive number"
                raise UserError(f"{_KEYS[name]} is {value!r}", where=where, hint=hint)
        c = cls(**sizes)
        if c.buckets < 4 or c.max_distance <= c.buckets // 4:
            what = f"{c.buckets} buckets do not reach from 0 to a distance of {c.max_distance}"
            keys = f"{_KEYS['buckets']} and {_KEYS['max_distance']}"
            raise UserError(what, where=where, hint=f"check {keys}")
        return c


class Attention(nnx.Module):
    """Adds attention over all tokens to the states; logits are biased by distance, not scaled.

    The logits take 4 b h l^2 bytes: 64 MiB per caption in UMT5-XXL with 512 tokens.
    """

    def __init__(self, c: UMT5Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.c = c
        d, h, k = c.width, c.heads, c.head_dim
        self.scale = nnx.Param(jnp.ones(d, dtype))
        new = partial(weight, rngs=rngs, dtype=dtype)
        self.q = new(d, h * k, std=(d * k) ** -0.5)  # smaller, as the logits are not scaled
        self.k, self.v = new(d, h * k, std=d**-0.5), new(d, h * k, std=d**-0.5)
        self.out = new(h * k, d, std=(h * k) ** -0.5)
        self.bias = new(c.buckets, h, std=d**-0.5)

    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        d, h, k = self.c.width, self.c.heads, self.c.head_dim
        y = rms_norm(x, self.scale[...], self.c.eps)
        q, key, value = (
            einsum("bld,dhk->blhk", y, w[...].reshape(d, h, k)).astype(y.dtype)
            for w in (self.q, self.k, self.v)
        )
        bucket = distance_buckets(x.shape[1], self.c.buckets, self.c.max_distance)
        bias = self.bias[...].astype(jnp.float32)[bucket].transpose(2, 0, 1)  # [h l l]
        logits = einsum("bqhk,bshk->bhqs", q, key) + bias
        # Finite, so that a caption without any token ends as zeros and not as NaN.
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(y.dtype)
        mixed = einsum("bhqs,bshk->bqhk", weights, value).astype(y.dtype)
        return x + einsum("blhk,hkd->bld", mixed, self.out[...].reshape(h, k, d))


class Block(nnx.Module):
    """Attention, then MLP, each after a norm. T5 has the relative bias in its first block only."""

    def __init__(self, c: UMT5Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.attention = Attention(c, rngs=rngs, dtype=dtype)
        self.feed_forward = FeedForward(
            c.width, c.mlp_dim, activation="gelu", eps=c.eps, rngs=rngs, dtype=dtype
        )

    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        return self.feed_forward(self.attention(x, mask))


class UMT5(nnx.Module):
    """Token ids to contextual states; the blocks' weights are stacked and applied by one scan.

    dtype: of weights and returned states, float32 or bfloat16 (float16 overflows in the MLP).
    Matrix products round their operands to it and accumulate in float32. Between blocks the states
    are float32 for any dtype: they are the sum of what all blocks add, and next to a large sum
    bfloat16's 8 bits would drop what is added.
    """

    def __init__(self, c: UMT5Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.bfloat16):
        self.c = c
        self.table = weight(c.vocab_size, c.width, std=1.0, rngs=rngs, dtype=dtype)
        keys = jax.random.split(rngs.params(), c.num_layers)
        self.blocks = nnx.vmap(lambda key: Block(c, rngs=nnx.Rngs(key), dtype=dtype))(keys)
        self.scale = nnx.Param(jnp.ones(c.width, dtype))

    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """Returns the states of the tokens, zero where `mask` is False.

        The Wan pipeline conditions on zeros past the end of a caption, and cached states hold them.
        """
        graph, weights = nnx.split(self.blocks)
        x = self.table[...][ids].astype(jnp.float32)
        x, _ = jax.lax.scan(lambda x, w: (nnx.merge(graph, w)(x, mask), None), x, weights)
        return jnp.where(mask[..., None], rms_norm(x, self.scale[...], self.c.eps), 0)


@lru_cache(maxsize=8)
def distance_buckets(l: int, count: int, max_distance: int) -> Int[np.ndarray, "l l"]:
    """Returns the bucket of each pair (query, key) by their distance, by T5's bidirectional rule.

    Half of the buckets is for keys after the query. In each half, the first half has one distance
    each; the others widen logarithmically up to `max_distance`, and the last holds all beyond.
    """
    half = count // 2
    exact = half // 2
    offset = np.arange(l)[None, :] - np.arange(l)[:, None]
    distance = np.abs(offset)
    log_distance = np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact)
    # 1e-6: rounding must not put the first distance of a bucket into the one before.
    widened = exact + (log_distance * (half - exact) + 1e-6).astype(int)
    widened = np.minimum(widened, half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, widened)


# One array under two names: a file has either or both.
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")
# Tensors of a complete UMT5 that its encoder does not read, and the second copy of the embedding.
UNUSED = ("decoder.", "lm_head.", _EMBEDDINGS[1])


def tensors(c: UMT5Config, names: Collection[str]) -> dict[str, Tensor]:
    """Returns the tensor of each array of a `UMT5`, by the names of transformers' UMT5.

    names: of the tensors in the file.
    """

    def stacked(name: str, arrange: str = "") -> Tensor:
        rows = tuple(f"encoder.block.{i}.{name}.weight" for i in range(c.num_layers))
        return Tensor(rows, arrange, stacked=True)

    table = next((name for name in _EMBEDDINGS if name in names), _EMBEDDINGS[0])
    found = {"table": Tensor((table,)), "scale": Tensor(("encoder.final_layer_norm.weight",))}
    attention, mlp = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    found["blocks.attention.scale"] = stacked("layer.0.layer_norm")
    found["blocks.attention.bias"] = stacked(f"{attention}.relative_attention_bias")
    for ours, theirs in {"q": "q", "k": "k", "v": "v", "out": "o"}.items():
        found[f"blocks.attention.{ours}"] = stacked(f"{attention}.{theirs}", "oi->io")
    found["blocks.feed_forward.scale"] = stacked("layer.1.layer_norm")
    for ours, theirs in {"gate": "wi_0", "up": "wi_1", "down": "wo"}.items():
        found[f"blocks.feed_forward.{ours}"] = stacked(f"{mlp}.{theirs}", "oi->io")
    return found
