"""The default image autoencoder: pixels, cut into patches. A VAE takes its place through the same three members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


@runtime_checkable
class Autoencoder(Protocol):
    """Pictures in [-1, 1] to a grid of latents and back."""

    @property
    def channels(self) -> int: ...  # of one latent

    def encode(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b y x c"]: ...

    def decode(self, latent: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]: ...


@dataclass(frozen=True)
class Pixels:
    """Each latent is a patch x patch square of pixels."""

    patch: int

    @property
    def channels(self) -> int:
        """Colour values in one patch."""
        return 3 * self.patch**2

    def encode(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b y x c"]:
        """Cuts the picture into patches."""
        return patchify(image, self.patch)

    def decode(self, latent: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        """Puts the patches together."""
        return unpatchify(latent, self.patch)


def from_u8(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Returns the colours of a picture of bytes in [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def patchify(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b y x e"]:
    """Cuts a picture into a grid of square patches, each with its values ordered (row, column, channel)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return jnp.transpose(x, (0, 1, 3, 2, 4, 5)).reshape(
        b, h // patch, w // patch, patch * patch * c
    )


def unpatchify(x: Float[Array, "b y x e"], patch: int) -> Float[Array, "b h w c"]:
    """Inverts `patchify`."""
    b, rows, columns, e = x.shape
    x = x.reshape(b, rows, columns, patch, patch, e // patch**2)
    return jnp.transpose(x, (0, 1, 3, 2, 4, 5)).reshape(b, rows * patch, columns * patch, -1)
