"""The modality of surface normals: unit vectors in the camera's frame, in pixel space.

x points right, y down and z forward, and normals point towards the camera (`data/normals.py`). A
mask per pixel lets partly known normals train, as it does sparse depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from modality_forcing.data import normals
from modality_forcing.encoders.pixels import patchify, unpatchify
from modality_forcing.modalities.base import Batch, Modality, RecordInput, Spec
from modality_forcing.viz.images import INVALID_COLOR, to_u8

KNOWN = 0.5  # least length: unknown normals are 0, known ones have length 1 up to rounding
_TINY = 1e-6


def normalize(n: Float[Array, "*s 3"]) -> Float[Array, "*s 3"]:
    """Returns vectors at length 1; those without a direction point at the camera, (0, 0, -1)."""
    length = jnp.linalg.norm(n, axis=-1, keepdims=True)
    return jnp.where(length > _TINY, n / jnp.maximum(length, _TINY), jnp.array((0.0, 0.0, -1.0)))


@dataclass(frozen=True)
class Normals(Modality):
    """Reads batch["normals"], f32 [b h w 3], 0 where unknown; returns unit vectors [b h w 3].

    Channels of a token are the three components in [-1, 1] of each of its pixels.
    """

    @property
    def channels(self) -> int:
        """Components of the normals in one patch."""
        return 3 * self.patch**2

    @property
    def inputs(self) -> dict[str, Spec]:
        """Maps of normals."""
        return {"normals": ((*self.size, 3), jnp.float32)}

    @property
    def record_inputs(self) -> Mapping[str, RecordInput]:
        """Normals are the record's, or estimated from its depth before a pattern thins that."""
        return {"normals": normals.of_record}

    def to_tokens(self, batch: Batch) -> tuple[Float[Array, "b n c"], Bool[Array, "b n c"]]:
        """Cuts unit vectors into patches; the mask is False for pixels of unknown normals."""
        n = batch["normals"]
        known = jnp.linalg.norm(n, axis=-1, keepdims=True) > KNOWN
        x0 = patchify(jnp.where(known, normalize(n), 0.0), self.patch)
        mask = patchify(jnp.broadcast_to(known, n.shape), self.patch)
        return x0.reshape(x0.shape[0], *self.shape), mask.reshape(x0.shape[0], *self.shape)

    def from_tokens(self, x0: Float[Array, "b n c"]) -> Float[Array, "b h w 3"]:
        """Returns unit vectors: the directions of what the tokens hold."""
        patches = x0.reshape(x0.shape[0], *self.grid, self.channels)
        return normalize(unpatchify(patches, self.patch))

    def project(self, values: np.ndarray) -> np.ndarray:
        """Returns vectors at length 1; a mean of directions is shorter."""
        length = np.linalg.norm(values, axis=-1, keepdims=True)
        return (values / np.where(length > _TINY, length, 1)).astype(np.float32)

    def colorize(self, decoded: np.ndarray) -> np.ndarray:
        """Returns colors u8 [b h w 3] of vectors f32 [b h w 3], as `colors_of`."""
        return colors_of(decoded)


def colors_of(vectors: np.ndarray) -> np.ndarray:
    """Returns colors u8 [... 3] as the field shows unit vectors f32 [... 3], gray where unknown.

    Red is (1 + x) / 2, so right is red; green (1 - y) / 2, so up is green; blue (1 - z) / 2, so
    what faces the camera is blue.
    """
    colors = to_u8((vectors * np.array((1, -1, -1), np.float32) + 1) / 2)
    known = np.linalg.norm(vectors, axis=-1, keepdims=True) > KNOWN
    return np.where(known, colors, np.array(INVALID_COLOR, np.uint8))


MODALITY = Normals
