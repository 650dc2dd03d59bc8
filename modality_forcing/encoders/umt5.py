"""The UMT5 text encoder, of any size: captions as token ids to one state per token, from weights in Hugging Face's names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from modality_forcing.encoders.weights import Tensor
from modality_forcing.errors import UserError

_KEYS = {  # our name of a size to that in a config.json
    "vocabulary": "vocab_size",
    "width": "d_model",
    "ffn": "d_ff",
    "heads": "num_heads",
    "head_dim": "d_kv",
    "blocks": "num_layers",
    "buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "eps": "layer_norm_epsilon",
}
# What a config.json says of everything that is not a size. gelu_new and gelu_pytorch_tanh are two names of one function.
_KINDS: dict[str, tuple[object, ...]] = {
    "feed_forward_proj": ("gated-gelu",),
    "is_gated_act": (True,),
    "dense_act_fn": ("gelu_new", "gelu_pytorch_tanh"),
}


@dataclass(frozen=True)
class UMT5Config:
    """Sizes of an encoder; buckets and max_distance are those of the relative position bias."""

    vocabulary: int
    width: int
    ffn: int
    heads: int
    head_dim: int
    blocks: int
    buckets: int = 32
    max_distance: int = 128
    eps: float = 1e-6

    @classmethod
    def from_dict(cls, read: Mapping[str, Any], where: object = "config.json") -> UMT5Config:
        """Returns the sizes that a config.json of transformers tells; raises UserError if it describes another network."""
        if read.get("model_type") != "umt5":
            hint = "give the folder of a UMT5 encoder"
            raise UserError(
                f"model_type is {read.get('model_type')!r}, not 'umt5'", where=where, hint=hint
            )
        for key, known in _KINDS.items():
            if read.get(key, known[0]) not in known:
                hint = "only UMT5 with a gated tanh GELU can be read"
                raise UserError(f"{key} is {read[key]!r}, not {known[0]!r}", where=where, hint=hint)
        required = [_KEYS[field.name] for field in fields(cls) if field.default is MISSING]
        if missing := [key for key in required if key not in read]:
            raise UserError(
                f"lacks {', '.join(missing)}", where=where, hint="download config.json again"
            )
        sizes = {name: read[key] for name, key in _KEYS.items() if key in read}
        for name, value in sizes.items():
            if (
                not isinstance(value, float if name == "eps" else int)
                or isinstance(value, bool)
                or value <= 0
            ):
                raise UserError(
                    f"{_KEYS[name]} is {value!r}", where=where, hint="it must be a positive number"
                )
        c = cls(**sizes)
        if c.buckets < 4 or c.max_distance <= c.buckets // 4:
            what = f"{c.buckets} buckets do not reach from 0 to a distance of {c.max_distance}"
            raise UserError(
                what,
                where=where,
                hint="check relative_attention_num_buckets and relative_attention_max_distance",
            )
        return c


class Attention(nnx.Module):
    """Adds to the states what each token reads from all others; logits are not scaled but biased by distance.

    The logits take 4 b h l^2 bytes, of one caption at a time 64 MiB in UMT5-XXL with 512 tokens: choose b accordingly.
    """

    def __init__(self, c: UMT5Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.c = c
        d, h, k = c.width, c.heads, c.head_dim
        self.scale = nnx.Param(jnp.ones(d, dtype))
        self.q = weight(
            d, h * k, std=(d * k) ** -0.5, rngs=rngs, dtype=dtype
        )  # makes up for the logits' missing scale
        self.k = weight(d, h * k, std=d**-0.5, rngs=rngs, dtype=dtype)
        self.v = weight(d, h * k, std=d**-0.5, rngs=rngs, dtype=dtype)
        self.out = weight(h * k, d, std=(h * k) ** -0.5, rngs=rngs, dtype=dtype)
        self.bias = weight(c.buckets, h, std=d**-0.5, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        d, h, k = self.c.width, self.c.heads, self.c.head_dim
        y = normed(x, self.scale[...], self.c.eps)
        q, key, value = (
            product("bld,dhk->blhk", y, w[...].reshape(d, h, k)).astype(y.dtype)
            for w in (self.q, self.k, self.v)
        )
        far = buckets(x.shape[1], self.c.buckets, self.c.max_distance)
        bias = self.bias[...].astype(jnp.float32)[far].transpose(2, 0, 1)  # [h l l]
        logits = product("bqhk,bshk->bhqs", q, key) + bias
        # Finite, so that a caption without any token gets zeros in the end and not NaN.
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(y.dtype)
        mixed = product("bhqs,bshk->bqhk", weights, value).astype(y.dtype)
        return x + product("blhk,hkd->bld", mixed, self.out[...].reshape(h, k, d))


class FeedForward(nnx.Module):
    """Adds to the states an MLP of each token, gated by a tanh GELU."""

    def __init__(self, c: UMT5Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.c = c
        d, f = c.width, c.ffn
        self.scale = nnx.Param(jnp.ones(d, dtype))
        self.gate, self.up = (weight(d, f, std=d**-0.5, rngs=rngs, dtype=dtype) for _ in range(2))
        self.down = weight(f, d, std=f**-0.5, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        y = normed(x, self.scale[...], self.c.eps)
        gate, up = (
            product("bld,df->blf", y, self.gate[...]),
            product("bld,df->blf", y, self.up[...]),
        )
        hidden = (jax.nn.gelu(gate, approximate=True) * up).astype(y.dtype)
        return x + product("blf,fd->bld", hidden, self.down[...])


class Block(nnx.Module):
    """Attention, then MLP, each with its norm in front and its own relative bias, which T5 has in its first block only."""

    def __init__(self, c: UMT5Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.attention = Attention(c, rngs=rngs, dtype=dtype)
        self.feed_forward = FeedForward(c, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        return self.feed_forward(self.attention(x, mask))


class UMT5(nnx.Module):
    """Token ids to contextual states, by blocks whose weights are stored stacked and applied by one scan.

    dtype: of weights and of the states returned, float32 or bfloat16 (float16 overflows in the MLP). Products round their
    operands to it and add up in float32. Between blocks the states are float32 whatever the dtype: they are the sum of
    what all blocks add, and next to a large sum bfloat16's 8 bits would drop what is added.
    """

    def __init__(self, c: UMT5Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.bfloat16):
        self.c = c
        self.table = weight(c.vocabulary, c.width, std=1.0, rngs=rngs, dtype=dtype)
        keys = jax.random.split(rngs.params(), c.blocks)
        self.blocks = nnx.vmap(lambda key: Block(c, rngs=nnx.Rngs(key), dtype=dtype))(keys)
        self.scale = nnx.Param(jnp.ones(c.width, dtype))

    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """Returns a state for each token, zero where `mask` is false.

        Zeros are what the Wan pipeline conditions on past the end of a caption, and what cached states hold.
        """
        graph, weights = nnx.split(self.blocks)
        x = self.table[...][ids].astype(jnp.float32)
        x, _ = jax.lax.scan(lambda x, w: (nnx.merge(graph, w)(x, mask), None), x, weights)
        return jnp.where(mask[..., None], normed(x, self.scale[...], self.c.eps), 0)


def weight(*shape: int, std: float, rngs: nnx.Rngs, dtype: DTypeLike) -> nnx.Param:
    """Returns a normally distributed weight; the standard deviations are those of transformers' T5."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, dtype))


def product(equation: str, x: Array, w: Array) -> Float[Array, "*s"]:
    """Einsum in the operands' dtype, added up and returned in float32."""
    return jnp.einsum(equation, x, w, preferred_element_type=jnp.float32)


def normed(x: Float[Array, "b l d"], scale: Float[Array, "d"], eps: float) -> Float[Array, "b l d"]:
    """X / rms(x) times the scale, in float32; the result in the scale's dtype."""
    x = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
    return (x * scale).astype(scale.dtype)


@lru_cache(maxsize=8)
def buckets(l: int, count: int, max_distance: int) -> Int[np.ndarray, "l l"]:
    """Returns the bucket of each pair (query, key) by their distance: T5's rule for both directions.

    One half of the buckets is for keys after the query. Of each half, the first half has one distance each; the others
    widen logarithmically up to `max_distance`, and the last holds all beyond.
    """
    half = count // 2
    exact = half // 2
    offset = np.arange(l)[None, :] - np.arange(l)[:, None]
    distance = np.abs(offset)
    widened = (
        np.log(np.maximum(distance, exact) / exact) / np.log(max_distance / exact) * (half - exact)
    )
    # The small number: where a bucket begins exactly at a whole distance, rounding must not put that into the one before.
    widened = np.minimum(exact + (widened + 1e-6).astype(int), half - 1)
    return np.where(offset > 0, half, 0) + np.where(distance < exact, distance, widened)


_EMBEDDINGS = (
    "shared.weight",
    "encoder.embed_tokens.weight",
)  # one array under two names: a file has either or both
# Of a whole UMT5, what its encoder does not read; with the second copy of the embedding.
UNUSED = ("decoder.", "lm_head.", _EMBEDDINGS[1])
_ATTENTION = {"q": "q", "k": "k", "v": "v", "out": "o"}
_FEED_FORWARD = {"gate": "wi_0", "up": "wi_1", "down": "wo"}


def tensors(c: UMT5Config, names: Collection[str]) -> dict[str, Tensor]:
    """Returns where each array of a `UMT5` lies in a file with these tensors, in the names of transformers' UMT5."""

    def stacked(name: str, arrange: str = "") -> Tensor:
        return Tensor(
            tuple(f"encoder.block.{i}.{name}.weight" for i in range(c.blocks)),
            arrange,
            stacked=True,
        )

    table = next((name for name in _EMBEDDINGS if name in names), _EMBEDDINGS[0])
    found = {"table": Tensor((table,)), "scale": Tensor(("encoder.final_layer_norm.weight",))}
    attention, feed_forward = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    found["blocks.attention.scale"] = stacked("layer.0.layer_norm")
    found["blocks.attention.bias"] = stacked(f"{attention}.relative_attention_bias")
    found |= {
        f"blocks.attention.{ours}": stacked(f"{attention}.{theirs}", "oi->io")
        for ours, theirs in _ATTENTION.items()
    }
    found["blocks.feed_forward.scale"] = stacked("layer.1.layer_norm")
    found |= {
        f"blocks.feed_forward.{ours}": stacked(f"{feed_forward}.{theirs}", "oi->io")
        for ours, theirs in _FEED_FORWARD.items()
    }
    return found
