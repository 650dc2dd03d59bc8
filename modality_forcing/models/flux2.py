"""The FLUX.2 transformer, and Modality Forcing's form of it: one more stream for each modality.

Double blocks have weights of their own for text and for each modality, and attend over all tokens.
Single blocks follow, whose weights all tokens share. With the image alone, this is FLUX.2 [klein]
of Black Forest Labs; with image and depth, the network of Duisterhof et al. (arXiv 2606.13676).

Two conventions are ours and not those of published files, which `flux2_weights` converts: rotary
pairs are halves of a head, and the velocity is data - noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from modality_forcing.config import ModelConfig, TextConfig
from modality_forcing.models.attention import HEAD_AXIS_ORDER, attend
from modality_forcing.models.blocks import (
    PRODUCT,
    Projections,
    Segments,
    Stack,
    broadcast_modulation,
)
from modality_forcing.models.dit import Stream, StreamSpec
from modality_forcing.models.layers import SINUSOID, Linear, TimestepEmbedder, layer_norm, zeros
from modality_forcing.models.rope import image_positions, rotary_table, rotate, text_positions

TEXT = "text"  # the name of its stream
_REFERENCE_STEP = 10  # on the first rotary axis, reference image j is at 10 (j + 1)

Rotation = Float[Array, "2 n a"]  # cosines and sines
Rows = Float[Array, "b e"]


class Reference(NamedTuple):
    """An image that the network is shown, clean, beside the one that it generates."""

    tokens: Float[Array, "b m c"]
    grid: tuple[int, int]  # rows, columns


class LevelEmbedder(TimestepEmbedder):
    """Noise level or guidance [b] -> vector [b d].

    dtype: float32. bfloat16 rounds as the public code of FLUX.2 and Modality Forcing does: the
    level, 1000 times the level, and all that follows; levels near 1 are then 1/256 apart.
    """

    def __init__(self, width: int, dtype: str, *, rngs: nnx.Rngs):
        super().__init__(width, rngs=rngs)
        self.dtype = jnp.dtype(dtype)

    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b d"]:
        scaled = (1000.0 * t.astype(self.dtype)).astype(jnp.float32)
        # Of a float32 exponent, as in the public code: a guidance of 4 makes angles of 4000, which
        # show the last bit of a frequency.
        half = SINUSOID // 2
        exponent = np.float32(-np.log(1e4)) * np.arange(half, dtype=np.float32) / np.float32(half)
        angle = scaled[:, None] * np.exp(exponent.astype(np.float64)).astype(np.float32)
        embedded = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return self.outer(jax.nn.silu(self.inner(embedded.astype(self.dtype))))


class SingleBlock(Projections):
    """Attention and MLP in parallel, from one norm: x + gate * (attention(y) + mlp(y))."""

    def __call__(
        self,
        x: Float[Array, "b n d"],
        modulation: Float[Array, "b s e"],  # e = 3 d: shift, scale, gate
        segments: Segments,
        rotation: Rotation,
    ) -> Float[Array, "b n d"]:
        rows = jnp.split(modulation, 3, axis=-1)
        shift, scale, gate = (broadcast_modulation(m, segments, x.shape[1]) for m in rows)
        y = modulate(x, shift, scale)
        with jax.named_scope("attention"):
            attention = self.mix(attend_rotated(self.c, *self.heads(y), rotation))
        with jax.named_scope("mlp"):
            mlp = self.mlp(y)
        return add(x, gate, attention + mlp)


class DoubleBlock(nnx.Module):
    """Attention over the tokens of all streams, then an MLP, with each stream's own weights."""

    def __init__(self, c: ModelConfig, streams: Sequence[str], *, rngs: nnx.Rngs):
        self.c, self.names = c, tuple(streams)
        for name in streams:
            setattr(self, name, Projections(c, rngs=rngs))

    def __call__(
        self,
        x: Mapping[str, Float[Array, "b _ d"]],
        modulation: Mapping[str, Float[Array, "b 1 e"]],  # e = 6 d: attention's 3, the MLP's 3
        rotation: Rotation,
    ) -> dict[str, Float[Array, "b _ d"]]:
        # In the order of the positions: the scan over blocks sorts a mapping's names.
        weights: dict[str, Projections] = {n: getattr(self, n) for n in self.names if n in x}
        rows = {n: jnp.split(modulation[n], 6, axis=-1) for n in weights}
        tokens = HEAD_AXIS_ORDER[self.c.attention].index("n") + 1
        with jax.named_scope("attention"):
            heads = [w.heads(modulate(x[n], *rows[n][:2])) for n, w in weights.items()]
            q, k, v = (jnp.concatenate(parts, axis=tokens) for parts in zip(*heads, strict=True))
            mixed = attend_rotated(self.c, q, k, v, rotation)
            parts = split_tokens(mixed, [x[n].shape[1] for n in weights], axis=tokens)
            x = {
                n: add(x[n], rows[n][2], w.mix(part))
                for (n, w), part in zip(weights.items(), parts, strict=True)
            }
        with jax.named_scope("mlp"):
            return {
                n: add(x[n], rows[n][5], w.mlp(modulate(x[n], *rows[n][3:5])))
                for n, w in weights.items()
            }


class Head(nnx.Module):
    """Tokens -> patches, in float32: (single blocks,) norm, shift and scale, zero-init linear."""

    def __init__(
        self, c: ModelConfig, stream: Stream, *, rngs: nnx.Rngs, keep_gathered: bool = False
    ):
        layers, single = stream.detokenizer_layers, partial(SingleBlock, c)
        kwargs = {"rngs": rngs, "keep_gathered": keep_gathered}
        self.blocks = Stack(c, layers, single, **kwargs) if layers else None
        self.block_modulation = Linear(c.width, 3 * c.width, rngs=rngs) if layers else None
        self.modulation = Linear(c.width, 2 * c.width, rngs=rngs)
        self.linear = Linear(c.width, stream.channels, rngs=rngs, init=zeros)

    def __call__(
        self, x: Float[Array, "b n d"], conditioning: Float[Array, "b d"], rotation: Rotation
    ) -> Float[Array, "b n c"]:
        if self.blocks is not None and self.block_modulation is not None:
            rows = self.block_modulation(conditioning)[:, None]  # [b 1 3d]
            x = self.blocks(x, rows, (0,), rotation)
        shift, scale = jnp.split(self.modulation(conditioning)[:, None], 2, axis=-1)  # [b 1 d]
        return self.linear(modulate(x.astype(jnp.float32), shift, scale))


class Flux2(nnx.Module):
    """Predicts every modality in its input from all of them, their noise levels and a text.

    Takes and returns what `models.dit.DiT` does, so that training, sampling and evaluation know
    neither. The states of a text encoder are used as they are, padding included, as FLUX.2 was
    trained. The first modality in the input is the primary one: text and the reference images are
    modulated by its noise level.

    keep_gathered: where weights are sharded, keep each block's full copy for the backward pass.
    """

    def __init__(
        self,
        c: ModelConfig,
        text: TextConfig,
        streams: Mapping[str, Stream],
        *,
        rngs: nnx.Rngs,
        keep_gathered: bool = False,
    ):
        self.c, self.names = c, tuple(streams)
        self.dtype = jnp.dtype(c.dtype)
        self.stream_specs = tuple(StreamSpec(s.position_id, s.grid) for s in streams.values())
        d = c.width
        level = partial(LevelEmbedder, d, c.level_dtype, rngs=rngs)

        def linears(outputs: int, names: Sequence[str]) -> nnx.Dict:
            return nnx.Dict({name: Linear(d, outputs, rngs=rngs) for name in names})

        if text.vocab_size:  # without a text encoder, as runs from scratch may have it
            normal = nnx.initializers.normal(1.0)
            self.table = nnx.Param(normal(rngs.params(), (text.vocab_size, text.channels)))
        self.text_in = Linear(text.channels, d, rngs=rngs)
        self.tokenizer = nnx.Dict({n: Linear(s.channels, d, rngs=rngs) for n, s in streams.items()})
        self.level_embedder = nnx.Dict({name: level() for name in streams})
        pairs = [f"{n}_from_{o}" for n in streams for o in streams if n != o and c.level_mixing]
        self.level_embedder_cross = nnx.Dict({pair: level() for pair in pairs})
        self.level_gate_cross = nnx.Dict({pair: nnx.Param(jnp.zeros(())) for pair in pairs})
        self.guidance_embedder = level() if c.embedded_guidance else None
        self.modulation = linears(6 * d, [TEXT, *streams])
        self.single_modulation = linears(3 * d, list(streams))
        stack = {"rngs": rngs, "keep_gathered": keep_gathered}
        double = partial(DoubleBlock, c, [TEXT, *streams])
        self.double = Stack(c, c.double_layers, double, **stack)
        self.single = Stack(c, c.num_layers, partial(SingleBlock, c), **stack)
        self.head = nnx.Dict({n: Head(c, s, **stack) for n, s in streams.items()})

    def __call__(
        self,
        x_t: Mapping[str, Float[Array, "b _ _"]],
        t: Mapping[str, Float[Array, " b"]],
        text: Mapping[str, Array],
        references: Sequence[Reference] = (),
    ) -> dict[str, Float[Array, "b _ _"]]:
        """Returns predictions {name: [b n c]} for noisy tokens x_t at noise levels t."""
        specs = {n: s for n, s in zip(self.names, self.stream_specs, strict=True) if n in x_t}
        primary = next(iter(specs))
        silu = {n: jax.nn.silu(self.conditioning(n, t)) for n in specs}  # [b d]
        states = text["tokens"]
        if jnp.issubdtype(states.dtype, jnp.integer):
            states = self.table[...][states]
        x = {TEXT: self.text_in(states.astype(self.dtype))}
        positions = {TEXT: text_positions(x[TEXT].shape[1])}
        for n, spec in specs.items():
            shown = references if n == primary else ()
            tokens = jnp.concatenate([x_t[n], *(r.tokens for r in shown)], axis=1)
            x[n] = self.tokenizer[n](tokens.astype(self.dtype))  # [b n d]
            ids = [image_positions(spec.position_id, spec.grid)]
            ids += [image_positions(_REFERENCE_STEP * (j + 1), r.grid) for j, r in enumerate(shown)]
            positions[n] = np.concatenate(ids)
        tables = {
            n: jnp.asarray(rotary_table(p, self.c.head_dim, self.c.rope_theta))
            for n, p in positions.items()
        }
        rotation = jnp.concatenate(list(tables.values()), axis=1)

        rows = {TEXT: self.modulation[TEXT](silu[primary])[:, None]}
        rows |= {n: self.modulation[n](vector)[:, None] for n, vector in silu.items()}
        mixed = self.double(x, rows, rotation)
        parts = [mixed[n] for n in x]  # in the order of the input

        lengths = [part.shape[1] for part in parts]
        starts = np.cumsum(lengths).tolist()
        single = [self.single_modulation[n](vector) for n, vector in silu.items()]
        segments = (0, *starts[1:-1])  # text shares the primary modality's row
        modulation = jnp.stack(single, axis=1)  # [b m 3d]
        joined = self.single(jnp.concatenate(parts, axis=1), modulation, segments, rotation)

        _, *outputs = split_tokens(joined, lengths, axis=1)
        own = {n: x_t[n].shape[1] for n in specs}  # without reference images
        return {
            n: self.head[n](y[:, : own[n]], silu[n], tables[n][:, : own[n]])
            for n, y in zip(specs, outputs, strict=True)
        }

    def conditioning(self, name: str, t: Mapping[str, Float[Array, " b"]]) -> Float[Array, "b d"]:
        """Embeds a modality's noise level, plus the gated levels of the other modalities in t."""
        vector = self.level_embedder[name](t[name])
        if self.guidance_embedder is not None:
            guidance = jnp.full_like(t[name], self.c.embedded_guidance)
            vector = vector + self.guidance_embedder(guidance)
        for other in self.names if self.c.level_mixing else ():
            pair = f"{name}_from_{other}"
            if other in t and other != name:
                cross = self.level_embedder_cross[pair](t[other])
                vector = vector + self.level_gate_cross[pair][...].astype(cross.dtype) * cross
        return vector


def squeezed(f: Callable[..., Array]) -> Callable[..., Array]:
    """Drops the axis of a batch of one around a function of arrays that all begin with it.

    Gradients of rows that all tokens share are sums over tokens. XLA on CPUs takes them 20 times
    as long from [1 n d] as from [n d].
    """

    def apply(*arrays: Array) -> Array:
        if all(x.shape[0] == 1 for x in arrays):
            return f(*(x[0] for x in arrays))[None]
        return f(*arrays)

    return apply


@squeezed
def modulate(x: Float[Array, "*b n d"], shift: Array, scale: Array) -> Float[Array, "*b n d"]:
    """Returns layer_norm(x) * (1 + scale) + shift, computed in float32, in x's dtype."""
    return (layer_norm(x.astype(jnp.float32)) * (1.0 + scale) + shift).astype(x.dtype)


@squeezed
def add(
    x: Float[Array, "*b n d"], gate: Array, y: Float[Array, "*b n d"]
) -> Float[Array, "*b n d"]:
    """Returns x + gate * y, computed in float32, in x's dtype.

    y may be kept for the gradient of its gate: computing it again would take its products again.
    """
    y = checkpoint_name(y, PRODUCT)
    return (x.astype(jnp.float32) + gate * y.astype(jnp.float32)).astype(x.dtype)


def attend_rotated(
    c: ModelConfig, q: Array, k: Array, v: Array, rotation: Rotation
) -> Float[Array, "b _ _ k"]:
    """Rotates queries and keys by their positions and attends over all tokens."""
    by_head = rotation if HEAD_AXIS_ORDER[c.attention] == "hn" else rotation[:, :, None]
    cos, sin = by_head[0], by_head[1]
    return attend(c.attention, rotate(q, cos, sin), rotate(k, cos, sin), v)


def split_tokens(x: Array, lengths: Sequence[int], *, axis: int) -> list[Array]:
    """Splits joined tokens into parts of these lengths."""
    return jnp.split(x, np.cumsum(lengths)[:-1].tolist(), axis=axis)
