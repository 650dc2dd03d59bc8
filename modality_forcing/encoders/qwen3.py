"""The Qwen3 text encoder of FLUX.2 [klein]: token ids to the states of three depths of the network.

Sources: transformers' Qwen3Model (states) and Flux2KleinPipeline (which states, and the padding).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

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

TAPS = (9, 18, 27)  # states after this many blocks; FLUX.2 [klein] reads these
_KEYS = {  # our names of sizes -> those of config.json
    "vocab_size": "vocab_size",
    "hidden": "hidden_size",
    "mlp_dim": "intermediate_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "num_layers": "num_hidden_layers",
    "eps": "rms_norm_eps",
}
# Other values of config.json that are fixed here. Transformers 5 lists the kind of each layer.
_FIXED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "rope_scaling": (None,),
}
_FULL = "full_attention"


@dataclass(frozen=True)
class Qwen3Config:
    """Sizes of an encoder; taps are the numbers of blocks after which states are read."""

    vocab_size: int
    hidden: int
    mlp_dim: int
    heads: int
    kv_heads: int
    head_dim: int
    num_layers: int
    rope_theta: float
    eps: float = 1e-6
    taps: tuple[int, ...] = TAPS

    @property
    def width(self) -> int:
        """Channels of the states that the encoder returns: those of all taps."""
        return len(self.taps) * self.hidden

    @property
    def blocks(self) -> int:
        """The number of blocks that are computed."""
        return max(self.taps)

    @classmethod
    def from_dict(
        cls, read: Tree, where: object = "config.json", *, taps: tuple[int, ...] = TAPS
    ) -> Qwen3Config:
        """Returns the sizes in a config.json of transformers 4 or 5.

        Raises UserError if it is of another network, lacks a size, or has too few layers.
        """
        if (kind := read.get("model_type")) != "qwen3":
            hint = "give the folder of a Qwen3 encoder, such as Qwen3-8B"
            raise UserError(f"model_type is {kind!r}, not 'qwen3'", where=where, hint=hint)
        for key, known in _FIXED.items():
            if read.get(key, known[0]) not in known:
                hint = "only the dense Qwen3 as published can be read"
                raise UserError(f"{key} is {read[key]!r}, not {known[0]!r}", where=where, hint=hint)
        if other := sorted({str(x) for x in read.get("layer_types") or ()} - {_FULL}):
            hint = "only the dense Qwen3 as published can be read"
            raise UserError(f"layer_types has {other[0]!r}", where=where, hint=hint)
        theta = _rope_theta(read, where)
        required = [key for key in _KEYS.values() if key != _KEYS["eps"]]
        missing = [key for key in required if key not in read]
        if missing or theta is None:
            lacks = ", ".join([*missing, *(["rope_theta"] if theta is None else [])])
            raise UserError(f"lacks {lacks}", where=where, hint="download config.json again")
        sizes = {name: read[key] for name, key in _KEYS.items() if key in read}
        for name, value in {**sizes, "rope_theta": theta}.items():
            kinds = (int, float) if name in ("eps", "rope_theta") else int
            number = isinstance(value, kinds) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                hint = "it must be a positive number"
                raise UserError(f"{_KEYS.get(name, name)} is {value!r}", where=where, hint=hint)
        c = cls(**sizes, rope_theta=float(theta), taps=taps)
        c.check(where)
        return c

    def check(self, where: object) -> None:
        """Raises UserError for sizes that do not go together."""
        if self.heads % self.kv_heads:
            what = f"{self.heads} heads do not share {self.kv_heads} key and value heads"
            hint = f"check {_KEYS['heads']} and {_KEYS['kv_heads']}"
            raise UserError(what, where=where, hint=hint)
        if self.head_dim % 2:
            hint = "rotary positions need an even number"
            raise UserError(f"head_dim is {self.head_dim}", where=where, hint=hint)
        if self.num_layers < self.blocks:
            what = f"has {self.num_layers} layers, and states after layer {self.blocks} are read"
            raise UserError(what, where=where, hint="give Qwen3-4B, Qwen3-8B or a larger one")


def _rope_theta(read: Tree, where: object) -> Any:
    """Returns the base of the rotary frequencies, None without one.

    Transformers 4 writes `rope_theta`, 5 `rope_parameters: {rope_theta, rope_type}`.
    """
    nested = read.get("rope_parameters") or {}
    if not isinstance(nested, Mapping):
        hint = "download config.json again"
        raise UserError(f"rope_parameters is {nested!r}", where=where, hint=hint)
    kind = nested.get("rope_type", "default")
    if kind != "default":
        hint = "only the dense Qwen3 as published can be read"
        raise UserError(f"rope_type is {kind!r}, not 'default'", where=where, hint=hint)
    return nested.get("rope_theta", read.get("rope_theta"))


class Attention(nnx.Module):
    """Adds causal attention to real tokens to the states; several query heads share a key head.

    The logits take 4 b h l^2 bytes: 32 MiB per prompt in Qwen3-8B with 512 tokens.
    """

    def __init__(self, c: Qwen3Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.c = c
        d, h, g, k = c.hidden, c.heads, c.kv_heads, c.head_dim
        self.scale, self.q_scale, self.k_scale = (nnx.Param(jnp.ones(n, dtype)) for n in (d, k, k))
        new = partial(weight, rngs=rngs, dtype=dtype)
        self.q, self.k, self.v = (new(d, n * k, std=d**-0.5) for n in (h, g, g))
        self.out = new(h * k, d, std=(h * k) ** -0.5)

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l l"]
    ) -> Float[Array, "b l d"]:
        c, dtype = self.c, self.q[...].dtype
        d, g, k = c.hidden, c.kv_heads, c.head_dim
        y = rms_norm(x, self.scale[...], c.eps)
        q, key, value = (
            einsum("bld,dgmk->blgmk", y, w[...].reshape(d, g, -1, k))
            for w in (self.q, self.k, self.v)
        )
        q, key = (
            rotate(rms_norm(z, scale[...].astype(jnp.float32), c.eps), c.rope_theta).astype(dtype)
            for z, scale in ((q, self.q_scale), (key, self.k_scale))
        )
        logits = einsum("bqgmk,bsgk->bgmqs", q, key[:, :, :, 0]) * k**-0.5
        # Finite, so that a row without any token ends as numbers and not as NaN.
        logits = jnp.where(mask[:, None, None], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
        mixed = einsum("bgmqs,bsgk->bqgmk", weights, value[:, :, :, 0].astype(dtype)).astype(dtype)
        return x + einsum("blgmk,gmkd->bld", mixed, self.out[...].reshape(g, -1, k, d))


class Block(nnx.Module):
    """Attention, then MLP, each after a norm."""

    def __init__(self, c: Qwen3Config, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.attention = Attention(c, rngs=rngs, dtype=dtype)
        self.feed_forward = FeedForward(
            c.hidden, c.mlp_dim, activation="silu", eps=c.eps, rngs=rngs, dtype=dtype
        )

    def __call__(
        self, x: Float[Array, "b l d"], mask: Bool[Array, "b l l"]
    ) -> Float[Array, "b l d"]:
        return self.feed_forward(self.attention(x, mask))


class Qwen3(nnx.Module):
    """Token ids to the states after `c.taps` blocks, without the blocks that follow the last one.

    The blocks' weights are stacked and applied by one scan. dtype: of weights and returned states,
    float32 or bfloat16. Matrix products round their operands to it and accumulate in float32. For
    any dtype, norms, rotations, softmax and the states between blocks are float32: with published
    weights a few channels are in the thousands, next to which bfloat16 drops what blocks add.
    """

    def __init__(self, c: Qwen3Config, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.bfloat16):
        self.c = c
        self.table = weight(c.vocab_size, c.hidden, std=1.0, rngs=rngs, dtype=dtype)
        keys = jax.random.split(rngs.params(), c.blocks)
        self.blocks = nnx.vmap(lambda key: Block(c, rngs=nnx.Rngs(key), dtype=dtype))(keys)

    def __call__(self, ids: Int[Array, "b l"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        """Returns the states of the taps side by side, of padding too (where `mask` is False).

        Padding follows the text. It reads the text and nothing else, and FLUX.2 reads its states.
        """
        table = self.table[...]
        (b, l), taps = ids.shape, self.c.taps
        seen = jnp.tril(jnp.ones((l, l), bool)) & mask[:, None, :]
        # Each block writes into the slot of the next tap, so the last one before a tap stays there.
        slots = jnp.asarray(np.searchsorted(taps, np.arange(1, self.c.blocks + 1)))
        graph, stacked = nnx.split(self.blocks)

        def step(
            carry: tuple[Array, Array], block: tuple[nnx.State, Array]
        ) -> tuple[tuple[Array, Array], None]:
            x, states = carry
            weights, slot = block
            x = nnx.merge(graph, weights)(x, seen)
            return (x, states.at[slot].set(x.astype(states.dtype))), None

        x = table[ids].astype(jnp.float32)
        states = jnp.zeros((len(taps), *x.shape), table.dtype)
        (_, states), _ = jax.lax.scan(step, (x, states), (stacked, slots))
        return states.transpose(1, 2, 0, 3).reshape(b, l, -1)


def rotate(x: Float[Array, "b l *h k"], theta: float) -> Float[Array, "b l *h k"]:
    """Rotates channels i and i + k/2 of position p by the angle p theta^(-2i/k)."""
    cos, sin = (
        table.reshape(table.shape[0], *[1] * (x.ndim - 3), -1)
        for table in rotary_tables(x.shape[1], x.shape[-1], theta)
    )
    low, high = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


@lru_cache(maxsize=8)
def rotary_tables(
    l: int, k: int, theta: float
) -> tuple[Float[np.ndarray, "l i"], Float[np.ndarray, "l i"]]:
    """Returns cosine and sine of each position and pair of channels: f32, from f64 angles."""
    angle = np.arange(l)[:, None] * theta ** (-np.arange(0, k, 2) / k)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def unused(c: Qwen3Config) -> tuple[str, ...]:
    """Returns the prefixes of tensors that are not read: later blocks, the last norm, the head."""
    later = (f"layers.{i}." for i in range(c.blocks, c.num_layers))
    inner = (*later, "norm.")
    return (*inner, *(f"model.{name}" for name in inner), "lm_head.")


def tensors(c: Qwen3Config, names: Collection[str]) -> dict[str, Tensor]:
    """Returns the tensor of each array of a `Qwen3`, by the names of transformers' Qwen3.

    names: of the tensors in the file; a Qwen3Model alone saves them without the prefix "model.".
    """
    prefix = "" if "embed_tokens.weight" in names else "model."

    def stacked(name: str, arrange: str = "") -> Tensor:
        rows = tuple(f"{prefix}layers.{i}.{name}.weight" for i in range(c.blocks))
        return Tensor(rows, arrange, stacked=True)

    found = {"table": Tensor((f"{prefix}embed_tokens.weight",))}
    found["blocks.attention.scale"] = stacked("input_layernorm")
    found["blocks.feed_forward.scale"] = stacked("post_attention_layernorm")
    for name in ("q", "k"):
        found[f"blocks.attention.{name}_scale"] = stacked(f"self_attn.{name}_norm")
    for ours, theirs in {"q": "q", "k": "k", "v": "v", "out": "o"}.items():
        found[f"blocks.attention.{ours}"] = stacked(f"self_attn.{theirs}_proj", "oi->io")
    for name in ("gate", "up", "down"):
        found[f"blocks.feed_forward.{name}"] = stacked(f"mlp.{name}_proj", "oi->io")
    return found
