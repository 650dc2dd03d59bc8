"""The shapes of a batch from a config alone, to compile a step without data."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from modality_forcing.config import Config, TextConfig
from modality_forcing.modalities.base import Modality


def abstract_batch(
    config: Config, modalities: Mapping[str, Modality], batch: int | None = None
) -> dict[str, PyTree]:
    """Returns a batch of `jax.ShapeDtypeStruct`s, by default of train.batch examples."""
    b = config.train.batch if batch is None else batch
    arrays = {"index": ((), jnp.int32)}
    for modality in modalities.values():
        arrays |= modality.inputs
    shaped = {
        name: jax.ShapeDtypeStruct((b, *shape), dtype) for name, (shape, dtype) in arrays.items()
    }
    return shaped | {"text": abstract_text(config.text, b)}


def abstract_text(c: TextConfig, b: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of encoded captions: word ids, or text encoder states in bfloat16."""
    tokens = (
        ((b, c.tokens), jnp.int32) if c.vocab_size else ((b, c.tokens, c.channels), jnp.bfloat16)
    )
    return {
        "tokens": jax.ShapeDtypeStruct(*tokens),
        "mask": jax.ShapeDtypeStruct((b, c.tokens), bool),
    }


def random_batch(shapes: PyTree) -> PyTree:
    """Returns NumPy arrays of these shapes with a target in every example (benchmarks, tests)."""
    rng = np.random.default_rng(0)

    def sample(path: PyTree, s: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name == "index":
            return np.arange(s.shape[0], dtype=np.int32)
        if s.dtype == bool:
            return rng.random(s.shape) < 0.5
        if jnp.issubdtype(s.dtype, jnp.integer):
            return rng.integers(1, 16, s.shape).astype(s.dtype)
        return rng.uniform(0.5, 2.0, s.shape).astype(s.dtype)

    return jax.tree_util.tree_map_with_path(sample, shapes)
