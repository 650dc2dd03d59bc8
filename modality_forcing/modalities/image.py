"""The image modality: colours in [-1, 1] through an autoencoder, or latents made before; every value is observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from modality_forcing.encoders.pixels import Autoencoder, Pixels
from modality_forcing.errors import UserError
from modality_forcing.modalities.base import Batch, Modality


@dataclass(frozen=True)
class Image(Modality):
    """Reads batch["image"], u8 [b h w 3]; decodes to float [b h w 3] in [0, 1].

    With `latents`, reads what a frozen autoencoder made of the pictures instead: batch["latent"], [b y x c].
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
            x0 = self.autoencoder.encode(batch["image"].astype(jnp.float32) / 127.5 - 1.0)
        x0 = x0.reshape(len(x0), *self.shape)
        return x0, jnp.ones_like(x0, bool)

    def decode(self, x0: Float[Array, "b n c"]) -> Float[Array, "b h w 3"]:
        """Returns colours in [0, 1], clipped."""
        if self.latents:
            raise UserError("this model makes latents, and there is no decoder for them here", mend="train it on pixels")
        image = self.autoencoder.decode(x0.reshape(len(x0), *self.grid, self.channels))
        return jnp.clip((image + 1.0) / 2.0, 0.0, 1.0)


MODALITY = Image
