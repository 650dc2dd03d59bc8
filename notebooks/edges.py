"""A modality of edges: the brightness gradient of the image, in pixel space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from modality_forcing.encoders.pixels import patchify, unpatchify
from modality_forcing.modalities.base import Batch, Modality


@dataclass(frozen=True)
class Edges(Modality):
    """Reads batch["image"], u8 [b h w 3]; returns edge strength [b h w] in [0, 1]."""

    @property
    def channels(self) -> int:
        """Values of one patch."""
        return self.patch**2

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """The images of the batch."""
        return {"image": ((*self.size, 3), jnp.uint8)}

    def to_tokens(self, batch: Batch) -> tuple[Float[Array, "b n c"], Bool[Array, "b n c"]]:
        """Returns edge strength in [-1, 1] as tokens; every value is known."""
        gray = jnp.mean(batch["image"].astype(jnp.float32), axis=-1) / 255.0
        dy, dx = jnp.gradient(gray, axis=(1, 2))
        strength = jnp.clip(4.0 * jnp.hypot(dx, dy), 0.0, 1.0)
        x0 = patchify(2.0 * strength[..., None] - 1.0, self.patch)
        x0 = x0.reshape(len(x0), *self.shape)
        return x0, jnp.ones_like(x0, bool)

    def from_tokens(self, x0: Float[Array, "b n c"]) -> Float[Array, "b h w"]:
        """Returns edge strength [b h w] in [0, 1]."""
        grid = x0.reshape(len(x0), *self.grid, self.channels)
        return jnp.clip((unpatchify(grid, self.patch)[..., 0] + 1.0) / 2.0, 0.0, 1.0)


MODALITY = Edges
