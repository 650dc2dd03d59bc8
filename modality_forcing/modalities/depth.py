"""The depth modality: z-depth relative to its mean, contracted to [0, 2), in pixel space.

Pixel space and a mask per value let sparse depth train.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from modality_forcing.encoders.pixels import patchify, unpatchify
from modality_forcing.modalities.base import Batch, Modality, Spec

# Contracted depth stays this far from 2, which is infinity: at most 1000 times the mean depth.
MARGIN = 1e-3


def contract(z: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Returns z up to 1, 2 - 1/z beyond (mip-NeRF 360): far depth counts like disparity."""
    return jnp.where(z <= 1.0, z, 2.0 - 1.0 / jnp.maximum(z, 1.0))


def expand(y: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Inverts `contract` after clamping y to [1e-3, 2 - 1e-3]."""
    y = jnp.clip(y, MARGIN, 2.0 - MARGIN)
    return jnp.where(y <= 1.0, y, 1.0 / (2.0 - jnp.maximum(y, 1.0)))


def unit_mean(depth: Float[Array, "b h w"], valid: Bool[Array, "b h w"]) -> Float[Array, "b h w"]:
    """Divides each map by the mean of its valid pixels; invalid pixels become 0.

    An unmasked or batch-wide mean would make tokens depend on the fill value or on other examples.
    """
    depth = jnp.where(valid, depth, 0.0)
    # Dividing by the maximum first keeps the sum finite and exact in float32 whatever the unit.
    depth = depth / jnp.maximum(jnp.max(depth, axis=(1, 2), keepdims=True), 1e-30)
    count = jnp.maximum(jnp.sum(valid, axis=(1, 2), keepdims=True), 1)
    mean = jnp.sum(depth, axis=(1, 2), keepdims=True) / count
    return jnp.where(valid, depth / jnp.maximum(mean, 1e-30), 0.0)


@dataclass(frozen=True)
class Depth(Modality):
    """Reads batch["depth"], f32 [b h w] in any unit, and batch["valid"], bool [b h w].

    Returns depth [b h w] relative to its mean.
    """

    @property
    def channels(self) -> int:
        """Depth values in one patch."""
        return self.patch**2

    @property
    def inputs(self) -> dict[str, Spec]:
        """Depth maps and their valid pixels."""
        return {"depth": (self.size, jnp.float32), "valid": (self.size, bool)}

    def to_tokens(self, batch: Batch) -> tuple[Float[Array, "b n c"], Bool[Array, "b n c"]]:
        """Normalizes over the valid pixels, contracts, and cuts into patches; the mask too."""
        x0 = patchify(contract(unit_mean(batch["depth"], batch["valid"]))[..., None], self.patch)
        mask = patchify(batch["valid"][..., None], self.patch)
        return x0.reshape(x0.shape[0], *self.shape), mask.reshape(x0.shape[0], *self.shape)

    def from_tokens(self, x0: Float[Array, "b n c"]) -> Float[Array, "b h w"]:
        """Returns positive depth, up to scale."""
        patches = x0.reshape(x0.shape[0], *self.grid, self.channels)
        return expand(unpatchify(patches, self.patch)[..., 0])


MODALITY = Depth
