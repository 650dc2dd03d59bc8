"""The image modality: colors in [-1, 1] through an autoencoder, or precomputed latents."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from modality_forcing.encoders.pixels import Autoencoder, Pixels, from_u8
from modality_forcing.modalities.base import Batch, Modality, Spec


@dataclass(frozen=True)
class Image(Modality):
    """Reads batch["image"], u8 [b h w 3]; returns float [b h w 3] in [0, 1].

    With `latent_channels`, reads a frozen autoencoder's latents instead, batch["latent"], and
    returns latents [b y x c]: its weights are no part of the network (`encoders.frozen`).
    """

    @property
    def autoencoder(self) -> Autoencoder:
        """Pixels to latents and back; by default latents are patches of pixels."""
        return Pixels(self.patch)

    @property
    def is_image(self) -> bool:
        """An image is its own picture."""
        return True

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.latent_channels or self.autoencoder.channels

    @property
    def inputs(self) -> dict[str, Spec]:
        """Images, or their latents."""
        if self.latent_channels:
            return {"latent": ((*self.grid, self.latent_channels), jnp.bfloat16)}
        return self.given_inputs

    @property
    def given_inputs(self) -> dict[str, Spec]:
        """Images, of which a frozen autoencoder makes the latents."""
        return {"image": ((*self.size, 3), jnp.uint8)}

    def to_tokens(self, batch: Batch) -> tuple[Float[Array, "b n c"], Bool[Array, "b n c"]]:
        """Encodes colors scaled to [-1, 1], or takes latents; every value is observed."""
        if self.latent_channels:
            x0 = batch["latent"].astype(jnp.float32)
        else:
            x0 = self.autoencoder.encode(from_u8(batch["image"]))
        x0 = x0.reshape(x0.shape[0], *self.shape)
        return x0, jnp.ones_like(x0, bool)

    def from_tokens(self, x0: Float[Array, "b n c"]) -> Float[Array, "b y x e"]:
        """Returns colors [b h w 3] clipped to [0, 1], or latents."""
        latents = x0.reshape(x0.shape[0], *self.grid, self.channels)
        if self.latent_channels:
            return latents
        return jnp.clip((self.autoencoder.decode(latents) + 1.0) / 2.0, 0.0, 1.0)


MODALITY = Image
