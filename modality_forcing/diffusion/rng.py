"""Randomness as a pure function of (seed, stream name, step, example index): nothing random is carried in any state."""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Array, Int, Key


def stream(seed: int, name: str, step: int | Array) -> Key[Array, ""]:
    """Returns the key of one named stream ("noise", "levels", ...) at one step.

    The name is hashed with crc32, which unlike `hash` is the same in every process.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)


def per_example(key: Key[Array, ""], index: Int[Array, " b"]) -> Key[Array, " b"]:
    """Returns a key per example, from its index in the data set.

    Keyed by example and not by batch slot, so that draws do not depend on how a batch is laid out over hosts and chips.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
