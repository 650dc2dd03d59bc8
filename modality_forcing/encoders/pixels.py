"""The interface of an image autoencoder, and the default one: patches of pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped, UInt8


@runtime_checkable
class Autoencoder(Protocol):
    """Images in [-1, 1] to a grid of latents and back."""

    @property
    def channels(self) -> int: ...  # of one latent

    def encode(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b y x c"]: ...

    def decode(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]: ...


@dataclass(frozen=True)
class Pixels:
    """Each latent is a patch x patch square of pixels."""

    patch: int

    @property
    def channels(self) -> int:
        """Color values in one patch."""
        return 3 * self.patch**2

    def encode(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b y x c"]:
        """Cuts images into patches."""
        return patchify(image, self.patch)

    def decode(self, latents: Float[Array, "b y x c"]) -> Float[Array, "b h w 3"]:
        """Joins patches to images."""
        return unpatchify(latents, self.patch)


def from_u8(image: UInt8[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
    """Scales bytes to [-1, 1]."""
    return image.astype(jnp.float32) / 127.5 - 1.0


def patchify(x: Shaped[Array, "b h w c"], patch: int) -> Shaped[Array, "b y x e"]:
    """Cuts images into a grid of square patches, each ordered (row, column, channel)."""
    b, h, w, c = x.shape
    y = x.reshape(b, h // patch, patch, w // patch, patch, c)
    y = jnp.transpose(y, (0, 1, 3, 2, 4, 5))  # [b y x p p c]
    return y.reshape(b, h // patch, w // patch, patch * patch * c)


def unpatchify(x: Shaped[Array, "b y x e"], patch: int) -> Shaped[Array, "b h w c"]:
    """Inverts `patchify`."""
    b, rows, columns, e = x.shape
    y = x.reshape(b, rows, columns, patch, patch, e // patch**2)
    y = jnp.transpose(y, (0, 1, 3, 2, 4, 5))  # [b y p x p c]
    return y.reshape(b, rows * patch, columns * patch, -1)
