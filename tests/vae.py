"""Both halves of the FLUX.2 autoencoder as one network, and its tensors in a complete file."""

from __future__ import annotations

from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from modality_forcing.encoders import flux2_names
from modality_forcing.encoders.flux2_names import HALVES
from modality_forcing.encoders.flux2_vae import Decoder, Encoder, VAEConfig
from modality_forcing.encoders.weights import Tensor

UNUSED = ("bn.num_batches_tracked",)


class VAE(nnx.Module):
    """An `Autoencoder` (pixels.py) of images in [-1, 1] to normalized latents."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
        self.decoder = Decoder(config, rngs=rngs, dtype=dtype)
        self.channels = config.channels

    def encode(self, image: jax.Array) -> jax.Array:
        return self.encoder(image)

    def decode(self, latents: jax.Array) -> jax.Array:
        return self.decoder(latents)


def tensors(config: VAEConfig, names: Collection[str]) -> dict[str, Tensor]:
    """The tensor of each array of `VAE` in a file of both halves, by dotted path."""
    return {
        f"{half}.{path}": tensor
        for half in HALVES
        for path, tensor in flux2_names.tensors(config, names, half).items()
    }
