"""The diffusion transformer: [text | modality | ...] in one flat sequence, every token at its own modality's noise level."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from modality_forcing.config import ModelConfig, TextConfig
from modality_forcing.models.blocks import Stack
from modality_forcing.models.embeddings import LevelEmbedder, TextIn
from modality_forcing.models.layers import Linear, rms_norm, zeros
from modality_forcing.models.rope import image_positions, rotary_angles, text_positions


@runtime_checkable
class Stream(Protocol):
    """What the network must know of a modality; modality objects fit without being known here."""

    @property
    def position_id(self) -> int: ...
    @property
    def grid(self) -> tuple[int, int]: ...  # rows, columns of tokens
    @property
    def channels(self) -> int: ...
    @property
    def detokenizer_layers(
        self,
    ) -> int: ...  # blocks that refine this modality's tokens alone before its head


class Head(nnx.Module):
    """Trunk tokens -> patches, in float32: (own blocks,) norm, shift and scale by the noise level, zero-initialised linear."""

    def __init__(
        self, c: ModelConfig, stream: Stream, *, rngs: nnx.Rngs, keep_gathered: bool = False
    ):
        self.blocks = (
            Stack(c, stream.detokenizer_layers, rngs=rngs, keep_gathered=keep_gathered)
            if stream.detokenizer_layers
            else None
        )
        self.block_modulation = modulation(c, rngs) if stream.detokenizer_layers else None
        self.modulation = Linear(c.width, 2 * c.width, rngs=rngs)
        self.linear = Linear(c.width, stream.channels, rngs=rngs, init=zeros)

    def __call__(
        self, x: Float[Array, "b n d"], level: Float[Array, "b d"], angles: Float[Array, "n a"]
    ) -> Float[Array, "b n c"]:
        level = jax.nn.silu(level)
        if self.blocks is not None and self.block_modulation is not None:
            own = self.block_modulation(level)[:, None]  # [b 1 3d]
            x = self.blocks(x, own, (0,), angles)
        shift, scale = jnp.split(self.modulation(level)[:, None], 2, axis=-1)  # [b 1 d]
        return self.linear(rms_norm(x.astype(jnp.float32)) * (1.0 + scale) + shift)


def modulation(c: ModelConfig, rngs: nnx.Rngs) -> Linear:
    """Returns a map from a level's vector to a stack's (shift, scale, gate); zero at first: blocks start as identities."""
    return Linear(c.width, 3 * c.width, rngs=rngs, init=zeros)


class DiT(nnx.Module):
    """Predicts every modality it is given from all of them, their noise levels and a text.

    A model built for several modalities can be run on any of them: what is absent from `noisy` takes no tokens and leaves
    no trace. The first modality it was built with leads: text is modulated by the lead's noise level.

    keep_gathered: where weights are sharded, keep each block's whole copy for the backward pass.
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
        self.places = tuple((n, s.position_id, s.grid) for n, s in streams.items())
        self.text = TextIn(text, c.width, rngs=rngs)
        self.tokenizer = nnx.Dict(
            {n: Linear(s.channels, c.width, rngs=rngs) for n, s in streams.items()}
        )
        self.level = nnx.Dict({n: LevelEmbedder(c.width, rngs=rngs) for n in streams})
        # Cross-stream mixing: how strongly, and what, a modality hears of another's noise level. Zero at the start.
        pairs = [(n, o) for n in streams for o in streams if n != o]
        self.mixer = nnx.Dict(
            {f"{n}_from_{o}": LevelEmbedder(c.width, rngs=rngs) for n, o in pairs}
        )
        self.mixing = nnx.Dict({f"{n}_from_{o}": nnx.Param(jnp.zeros(())) for n, o in pairs})
        self.modulation = modulation(c, rngs)
        self.trunk = Stack(c, c.num_layers, rngs=rngs, keep_gathered=keep_gathered)
        self.head = nnx.Dict(
            {n: Head(c, s, rngs=rngs, keep_gathered=keep_gathered) for n, s in streams.items()}
        )

    def __call__(
        self,
        noisy: Mapping[str, Float[Array, "b n c"]],
        t: Mapping[str, Float[Array, " b"]],
        text: Mapping[str, Array],
    ) -> dict[str, Float[Array, "b n c"]]:
        names = [n for n in self.names if n in noisy]
        level = {n: self._level(n, t) for n in names}  # [b d], float32
        tokens = {n: self.tokenizer[n](noisy[n].astype(self.dtype)) for n in names}  # [b n d]

        parts = [self.text(text, self.dtype), *tokens.values()]
        lengths = [part.shape[1] for part in parts]
        x = jnp.concatenate(parts, axis=1)  # [b n d]
        levels = jnp.stack(
            [self.modulation(jax.nn.silu(level[n])) for n in names], axis=1
        )  # [b m 3d]
        segments = (0, *np.cumsum(lengths)[1:-1].tolist())  # text follows the lead
        positions = [
            text_positions(lengths[0]),
            *(image_positions(i, grid) for n, i, grid in self.places if n in noisy),
        ]
        angles = [
            rotary_angles(p, self.c.head_dim, self.c.rope_theta) for p in positions
        ]  # [n k/2] each
        x = self.trunk(x, levels, segments, jnp.asarray(np.concatenate(angles)))

        own = jnp.split(x, np.cumsum(lengths[:-1]), axis=1)[1:]  # [b n d] each, text left out
        return {
            n: self.head[n](y, level[n], jnp.asarray(a))
            for n, y, a in zip(names, own, angles[1:], strict=True)
        }

    def _level(self, name: str, t: Mapping[str, Float[Array, " b"]]) -> Float[Array, "b d"]:
        vector = self.level[name](t[name])
        for other in self.names:
            if other != name and other in t:
                pair = f"{name}_from_{other}"
                vector = vector + self.mixing[pair][...] * self.mixer[pair](t[other])
        return vector
