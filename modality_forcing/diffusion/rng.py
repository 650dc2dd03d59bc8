"""Random keys as a pure function of (seed, name, step, example index); no state carries a key."""

from __future__ import annotations

import zlib

import jax
from jaxtyping import Array, Int, Key


def named_key(seed: int | Int[Array, ""], name: str, step: int | Int[Array, ""]) -> Key[Array, ""]:
    """Returns the key of one named random stream ("noise", "levels", ...) at one step.

    The name is hashed with crc32, which unlike `hash` is the same in every process.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()))
    return jax.random.fold_in(key, step)


def per_example(key: Key[Array, ""], index: Int[Array, " b"]) -> Key[Array, " b"]:
    """Returns a key per example, from its index in the data set.

    Keyed by example and not by position in the batch, so that random numbers do not depend on how
    a batch is divided among hosts and chips.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
