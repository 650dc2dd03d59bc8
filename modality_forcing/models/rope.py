"""Rotary positions along four axes: modality id, row, column, text position."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

AXES = 4


def image_positions(position_id: int, grid: tuple[int, int]) -> Int[np.ndarray, "n 4"]:
    """Positions of a modality's tokens: (modality, row, column, 0), row by row."""
    rows, columns = np.mgrid[: grid[0], : grid[1]].reshape(2, -1)
    return np.stack([np.full_like(rows, position_id), rows, columns, np.zeros_like(rows)], axis=1)


def text_positions(tokens: int) -> Int[np.ndarray, "l 4"]:
    """Positions of text tokens: (0, 0, 0, position)."""
    return np.concatenate([np.zeros((tokens, 3), int), np.arange(tokens)[:, None]], axis=1)


def rotary_angles(
    positions: Int[np.ndarray, "n 4"], head_dim: int, theta: float
) -> Float[np.ndarray, "n a"]:
    """Angles [n k/2] of the channel pairs of a head; each of the four axes owns a quarter of it.

    Frequencies per axis are theta^(-2i / (k/4)), as in FLUX.2 (theta 2000).
    """
    return _angles(positions, head_dim, theta).astype(np.float32)


def rotary_table(
    positions: Int[np.ndarray, "n 4"], head_dim: int, theta: float
) -> Float[np.ndarray, "2 n a"]:
    """Cosines and sines of `rotary_angles`, computed in float64.

    A float32 angle of text position 511 is off by up to 1.5e-5.
    """
    angles = _angles(positions, head_dim, theta)
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def _angles(positions: Int[np.ndarray, "n 4"], head_dim: int, theta: float) -> np.ndarray:
    per_axis = head_dim // AXES
    frequency = theta ** -(np.arange(0, per_axis, 2) / per_axis)  # [k/8]
    return (positions[:, :, None] * frequency).reshape(len(positions), -1)


def apply_rope(x: Float[Array, "*s k"], angles: Float[Array, "*t a"]) -> Float[Array, "*s k"]:
    """Rotates by angles (see `rotate`)."""
    return rotate(x, jnp.cos(angles), jnp.sin(angles))


def rotate(
    x: Float[Array, "*s k"], cos: Float[Array, "*t a"], sin: Float[Array, "*t a"]
) -> Float[Array, "*s k"]:
    """Rotates channel i of the first half with channel i of the second by angle i, in float32.

    Halves and not neighbors: a strided access costs a TPU a relayout, and the pairing is only a
    permutation of q and k.
    """
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)
