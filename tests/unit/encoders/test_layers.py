"""Products and norms round their operands only."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from modality_forcing.encoders.layers import einsum, rms_norm, weight


def test_weight_has_its_deviation_and_type():
    made = weight(200, 300, std=0.1, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)[...]
    assert made.shape == (200, 300) and made.dtype == jnp.bfloat16
    assert abs(float(jnp.std(made.astype(jnp.float32))) - 0.1) < 1e-3


def test_products_of_bfloat16_are_summed_in_float32():
    """In bfloat16, 256 + 1 is 256."""
    x = jnp.ones((1, 300), jnp.bfloat16)
    found = einsum("bi,io->bo", x, jnp.ones((300, 1), jnp.bfloat16))
    assert found.dtype == jnp.float32 and found.tolist() == [[300.0]]


def test_rms_norm_over_any_leading_axes():
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32) * 7
    scale = np.arange(1, 6, dtype=np.float32)
    found = rms_norm(jnp.asarray(x), jnp.asarray(scale), 0.5)
    want = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 0.5) * scale
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert rms_norm(jnp.asarray(x), jnp.asarray(scale, jnp.bfloat16), 0.5).dtype == jnp.bfloat16
