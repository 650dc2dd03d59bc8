"""The image modality: colours in [-1, 1] through an autoencoder, or latents made before; every value is observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from modality_forcing.encoders.pixels import Autoencoder, Pixels, from_u8
from modality_forcing.modalities.base import Batch, Modality


@dataclass(frozen=True)
class Image(Modality):
    """Reads batch["image"], u8 [b h w 3]; decodes to float [b h w 3] in [0, 1].

    With `latents`, reads what a frozen autoencoder made of the pictures instead, batch["latent"], and decodes to such
    latents [b y x c]: its weights are no part of the network (`encoders.frozen`).
    """

    @property
    def autoencoder(self) -> Autoencoder:
        """What turns pixels into latents: pixels themselves, by default."""
        return Pixels(self.patch)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.latents or self.autoencoder.channels

    @property
    def inputs(self) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Pictures, or their latents."""
        if self.latents:
            return {"latent": ((*self.grid, self.latents), jnp.bfloat16)}
        return {"image": ((self.resolution, self.resolution, 3), jnp.uint8)}

    def encode(self, batch: Batch) -> tuple[Float[Array, "b n c"], Bool[Array, "b n c"]]:
        """Scales colours to [-1, 1] and encodes them."""
        if self.latents:
            x0 = batch["latent"].astype(jnp.float32)
        else:
            x0 = self.autoencoder.encode(from_u8(batch["image"]))
        x0 = x0.reshape(len(x0), *self.shape)
        return x0, jnp.ones_like(x0, bool)

    def decode(self, x0: Float[Array, "b n c"]) -> Float[Array, "b y x c"]:
        """Returns colours [b h w 3] in [0, 1], clipped, or latents."""
        grid = x0.reshape(len(x0), *self.grid, self.channels)
        return (
            grid
            if self.latents
            else jnp.clip((self.autoencoder.decode(grid) + 1.0) / 2.0, 0.0, 1.0)
        )


MODALITY = Image
