"""What enters the transformer besides patches: noise levels and text."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from modality_forcing.config import TextConfig
from modality_forcing.models.layers import Linear, rms_norm


def sinusoid(
    t: Float[Array, " b"], channels: int = 256, period: float = 10_000.0
) -> Float[Array, "b c"]:
    """Embeds noise levels in [0, 1], scaled by 1000, as [cos | sin]; always float32: bfloat16 cannot tell 0.99 from 0.991."""
    frequency = jnp.exp(
        -math.log(period) * jnp.arange(channels // 2, dtype=jnp.float32) / (channels // 2)
    )
    angle = 1000.0 * t.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class LevelEmbedder(nnx.Module):
    """Noise level -> vector of the model's width: sinusoid, then a two-layer MLP, in float32."""

    def __init__(self, width: int, *, rngs: nnx.Rngs, channels: int = 256):
        self.channels = channels
        self.inner = Linear(channels, width, rngs=rngs)
        self.outer = Linear(width, width, rngs=rngs)

    def __call__(self, t: Float[Array, " b"]) -> Float[Array, "b d"]:
        return self.outer(jax.nn.silu(self.inner(sinusoid(t, self.channels))))


class TextIn(nnx.Module):
    """Text conditioning -> tokens: states -> RMSNorm -> linear, padding -> one learned vector, so shapes stay static.

    The states are a frozen encoder's, [b l e], or rows of a table learned here and picked by word ids, [b l].
    """

    def __init__(self, config: TextConfig, width: int, *, rngs: nnx.Rngs):
        self.config = config
        normal = nnx.initializers.normal(1.0)
        if config.vocab_size:
            self.table = nnx.Param(normal(rngs.params(), (config.vocab_size, config.channels)))
        self.linear = Linear(config.channels, width, rngs=rngs)
        self.padding = nnx.Param(normal(rngs.params(), (width,)) * 0.02)

    def __call__(self, text: Mapping[str, Array], dtype: jnp.dtype) -> Float[Array, "b l d"]:
        states = text["tokens"]
        if self.config.vocab_size:
            states = self.table[...][states]  # [b l e]
        states = self.linear(rms_norm(states.astype(jnp.float32)).astype(dtype))  # [b l d]
        return jnp.where(text["mask"][:, :, None], states, self.padding[...].astype(dtype))
