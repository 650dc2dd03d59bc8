"""The diffusion transformer: text and modalities in one sequence, each at its own noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from modality_forcing.config import ModelConfig, TextConfig
from modality_forcing.models.blocks import Stack
from modality_forcing.models.layers import Linear, TextEmbedder, TimestepEmbedder, rms_norm, zeros
from modality_forcing.models.rope import image_positions, rotary_angles, text_positions


@runtime_checkable
class Stream(Protocol):
    """What the network needs of a modality; `modalities.Modality` fits without being imported."""

    @property
    def position_id(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...  # rows, columns of tokens
    @property
    def channels(self) -> int: ...
    @property
    def detokenizer_layers(self) -> int: ...  # blocks on this modality's tokens before its head


class StreamSpec(NamedTuple):
    """The positions of a modality's tokens."""

    position_id: int
    grid: tuple[int, int]


class Head(nnx.Module):
    """Trunk tokens -> patches, in float32: (blocks,) norm, shift and scale, zero-init linear."""

    def __init__(
        self, c: ModelConfig, stream: Stream, *, rngs: nnx.Rngs, keep_gathered: bool = False
    ):
        layers = stream.detokenizer_layers
        kwargs = {"rngs": rngs, "keep_gathered": keep_gathered}
        self.blocks = Stack(c, layers, **kwargs) if layers else None
        self.block_modulation = block_modulation(c, rngs) if layers else None
        self.modulation = Linear(c.width, 2 * c.width, rngs=rngs)
        self.linear = Linear(c.width, stream.channels, rngs=rngs, init=zeros)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        conditioning: Float[Array, "b d"],
        angles: Float[Array, "n a"],
    ) -> Float[Array, "b n c"]:
        conditioning = jax.nn.silu(conditioning)
        if self.blocks is not None and self.block_modulation is not None:
            rows = self.block_modulation(conditioning)[:, None]  # [b 1 3d]
            x = self.blocks(x, rows, (0,), angles)
        shift, scale = jnp.split(self.modulation(conditioning)[:, None], 2, axis=-1)  # [b 1 d]
        return self.linear(rms_norm(x.astype(jnp.float32)) * (1.0 + scale) + shift)


def block_modulation(c: ModelConfig, rngs: nnx.Rngs) -> Linear:
    """Returns the map from conditioning to a stack's (shift, scale, gate).

    Zero at the start: blocks start as identities.
    """
    return Linear(c.width, 3 * c.width, rngs=rngs, init=zeros)


class DiT(nnx.Module):
    """Predicts every modality in its input from all of them, their noise levels and a text.

    A model of several modalities runs on any subset: absent ones take no tokens and leave no trace.
    The first modality in the input is the primary one: text is modulated by its noise level.

    The order in which attributes are created fixes the random initial weights to the bit, and the
    alphabetical order of their names the sums over all weights (the gradient's norm).

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

        def embedders(names: list[str]) -> dict[str, TimestepEmbedder]:
            return {name: TimestepEmbedder(c.width, rngs=rngs) for name in names}

        self.text_embedder = TextEmbedder(text, c.width, rngs=rngs)
        self.tokenizer = nnx.Dict(
            {n: Linear(s.channels, c.width, rngs=rngs) for n, s in streams.items()}
        )
        self.level_embedder = nnx.Dict(embedders(list(streams)))
        # A modality is also conditioned on the other noise levels, through gates that start at 0.
        pairs = [f"{n}_from_{o}" for n in streams for o in streams if n != o and c.level_mixing]
        self.level_embedder_cross = nnx.Dict(embedders(pairs))
        self.level_gate_cross = nnx.Dict({pair: nnx.Param(jnp.zeros(())) for pair in pairs})
        self.modulation = block_modulation(c, rngs)
        self.trunk = Stack(c, c.num_layers, rngs=rngs, keep_gathered=keep_gathered)
        self.head = nnx.Dict(
            {n: Head(c, s, rngs=rngs, keep_gathered=keep_gathered) for n, s in streams.items()}
        )

    def __call__(
        self,
        x_t: Mapping[str, Float[Array, "b _ _"]],
        t: Mapping[str, Float[Array, " b"]],
        text: Mapping[str, Array],
    ) -> dict[str, Float[Array, "b _ _"]]:
        """Returns predictions {name: [b n c]} for noisy tokens x_t at noise levels t."""
        specs = {n: s for n, s in zip(self.names, self.stream_specs, strict=True) if n in x_t}
        conditioning = {n: self.conditioning(n, t) for n in specs}  # [b d], float32
        tokens = [self.tokenizer[n](x_t[n].astype(self.dtype)) for n in specs]  # [b n d] each
        parts = [self.text_embedder(text, self.dtype), *tokens]
        lengths = [part.shape[1] for part in parts]
        starts = np.cumsum(lengths)[:-1].tolist()  # first token of each modality
        x = jnp.concatenate(parts, axis=1)  # [b n d], n over all parts

        rows = [self.modulation(jax.nn.silu(vector)) for vector in conditioning.values()]
        modulation = jnp.stack(rows, axis=1)  # [b m 3d]
        segments = (0, *starts[1:])  # text shares the primary modality's row
        positions = [text_positions(lengths[0])]
        positions += [image_positions(s.position_id, s.grid) for s in specs.values()]
        angles = [rotary_angles(p, self.c.head_dim, self.c.rope_theta) for p in positions]
        x = self.trunk(x, modulation, segments, jnp.asarray(np.concatenate(angles)))

        _, *outputs = jnp.split(x, starts, axis=1)  # [b n d] each, text left out
        return {
            n: self.head[n](y, conditioning[n], jnp.asarray(a))
            for n, y, a in zip(specs, outputs, angles[1:], strict=True)
        }

    def conditioning(self, name: str, t: Mapping[str, Float[Array, " b"]]) -> Float[Array, "b d"]:
        """Embeds a modality's noise level, plus the gated levels of the other modalities in t."""
        vector = self.level_embedder[name](t[name])
        for other in self.names if self.c.level_mixing else ():
            pair = f"{name}_from_{other}"
            if other in t and other != name:
                cross = self.level_embedder_cross[pair](t[other])
                vector = vector + self.level_gate_cross[pair][...] * cross
        return vector
